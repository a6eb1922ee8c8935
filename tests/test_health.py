"""Dead and saturated channels: seen, told of, and brought back."""

import pytest
import torch
from torch import nn

from stars_deploy.config import load_config
from stars_deploy.distill.health import PATIENCE, HealthWatch, LayerHealth, advise, lately
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.spiking import NeuronModel, StudentOutput
from stars_deploy.student import build_student
from stars_deploy.teacher import load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


def student(teacher, spec="vgg:4-6", timesteps=4):
    torch.manual_seed(0)
    return build_student(teacher, spec, timesteps, NeuronModel(decay=0.5))[0]


def output(*rates):
    """Spikes of layers whose channels fire at the given rates, 0 or 1."""
    spikes = tuple(torch.tensor(layer).view(1, 1, -1, 1, 1).expand(2, 3, -1, 2, 2).float() for layer in rates)
    return StudentOutput(logits=torch.zeros(2, 3, 10), spikes=spikes)


QUIET = output([0, 0, 1, 0], [0, 0, 0, 0, 0, 0])
LOUD = output([0, 1, 1, 1], [1, 0, 1, 1, 0, 1])


def test_channels_are_ill_after_several_rounds_in_a_row(teacher):
    watch = HealthWatch(student(teacher))
    for _ in range(PATIENCE - 1):
        assert watch.look(QUIET) == [LayerHealth(dead=0, saturated=0)] * 2
    assert watch.look(QUIET) == [LayerHealth(dead=0.75, saturated=0.25), LayerHealth(dead=1, saturated=0)]
    # One spike, and the count begins anew.
    assert watch.look(LOUD) == [
        LayerHealth(dead=0.25, saturated=0.25),
        LayerHealth(dead=pytest.approx(2 / 6), saturated=0),
    ]


def test_counts_are_part_of_the_state(teacher):
    watch, other = HealthWatch(student(teacher)), HealthWatch(student(teacher))
    for _ in range(PATIENCE):
        watch.look(QUIET)
    other.load_state_dict(watch.state_dict())
    assert other.now() == watch.now()
    assert other.now()[1].dead == 1


def test_remedy_shifts_only_what_is_ill_and_forgets_its_moments(teacher):
    network = student(teacher)
    watch = HealthWatch(network)
    norm = network.norms()[0]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 3.0]))
        norm.bias.copy_(torch.tensor([-10.0, -10.0, 10.0, -1.0]))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(4, 1, 8, 8)).mean_logits().sum().backward()
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[norm.bias][name].fill_(1.0)
    before = norm.bias.detach().clone()
    for _ in range(PATIENCE):
        watch.look(output([0, 1, 1, 0], [1, 1, 1, 1, 1, 1]))
    assert watch.revive(network, optimizer) == 4 + 6
    # i (1 - decay^4) / (1 - decay) = 1 at decay .5 gives i = .5333; less a deviation; never lower than it was.
    expected = [8 / 15 - float(norm.weight[0]), float(before[1]), 1.0, float(before[3])]
    assert norm.bias.tolist() == pytest.approx(expected, abs=1e-5)
    assert optimizer.state[norm.bias]["exp_avg"].tolist() == [0, 0, 0, 0]
    assert watch.revive(network, optimizer) == 0  # each gets its patience anew


def test_constant_current_of_the_remedy_fires_at_the_last_timestep(teacher):
    from stars_deploy.distill.health import _firing_current

    network = student(teacher)
    neurons = next(layer for layer in network.layers if hasattr(layer, "run"))
    current = _firing_current(network, 0)
    for factor, fires in ((1.001, True), (0.999, False)):
        spikes = neurons(torch.full((4, 1), factor * current))
        assert spikes.flatten().tolist() == [0, 0, 0, float(fires)]


def killed(run):
    """Shift every batch norm so low that nothing can fire."""
    for norm in run.student.norms():
        nn.init.constant_(norm.bias, -10.0)
    return run


@pytest.mark.parametrize("revive", [True, False])
def test_dead_student_learns_again_with_the_remedy_only(teacher, revive):
    config = load_config(
        None,
        {
            "student": {"spec": "vgg:8-16"}, "timesteps": 3, "method": "bn", "threads": 1,
            "distill": {"steps": 200, "steps_per_round": 4, "learning_rate": 3e-3, "revive": revive},
            "synthesis": {"batch": 40, "options": {"warmup_steps": 40, "inner_steps": 2}},
        },
    )  # fmt: skip
    run = killed(make_distiller(config, teacher))
    run.run(lambda *_: None)
    last = run.history[-1]
    agreement = float(
        (run.student(run.pool.newest(200) / 255).mean_logits().argmax(1) == teacher.predict(run.pool.newest(200) / 255))
        .float().mean()
    )  # fmt: skip
    if revive:
        assert last["dead/2"] < 0.3
        assert sum(entry.get("revived", 0) for entry in run.history) > 10
        assert agreement > 0.4
    else:
        assert last["dead/2"] == 1
        assert agreement < 0.3


def test_channels_that_die_again_and_again_are_told_of(teacher):
    """Each revival begins the count anew: the last round alone says that all is well."""
    config = load_config(
        None,
        {"student": {"spec": "vgg:4-6"}, "timesteps": 2, "distill": {"steps": 48, "steps_per_round": 2},
         "synthesis": {"batch": 20, "options": {"warmup_steps": 1, "inner_steps": 1}}},
    )  # fmt: skip
    run = make_distiller(config, teacher)
    advance = run.advance

    def dying():
        killed(run)
        advance()

    run.advance = dying
    run.run(lambda *_: None)
    dead = [entry["dead/2"] for entry in run.history]
    assert dead[9] == dead[14] == 1
    assert dead[15:19] == [0] * 4
    (first, second) = lately(run.history[:19])
    assert first.dead == second.dead == 1
    assert "100% of the channels of spiking layer 2 never fire" in advise(lately(run.history[:19]))[1]
    # From nine tenths on, with no time to learn what a channel is for, none is brought back.
    revived = [entry.get("revived") for entry in run.history]
    assert revived[19] == 10
    assert revived[21:] == [None] * 3
    assert float(run.student.norms()[1].bias.max()) < -9
    assert lately([]) == lately([{"step": 1.0}]) == []


def test_inherited_channels_are_watched_but_left_alone(teacher):
    config = load_config(
        None, {"timesteps": 2, "distill": {"steps": 40, "steps_per_round": 4}, "synthesis": {"batch": 20,
               "options": {"warmup_steps": 2, "inner_steps": 1}}}
    )  # fmt: skip
    run = make_distiller(config, teacher)
    norm = run.student.norms()[0]
    nn.init.constant_(norm.bias, -10.0)
    run.run(lambda *_: None)
    assert run.history[-1]["dead/1"] > 0.9
    assert "revived" not in run.history[-1]
    assert float(norm.bias.max()) < -9


def test_advice_names_layer_share_and_what_to_do():
    assert advise([LayerHealth(dead=0.1, saturated=0.1)]) == []
    dead, busy = advise([LayerHealth(dead=0, saturated=0), LayerHealth(dead=0.25, saturated=0.5)])
    assert "25% of the channels of spiking layer 2 never fire" in dead
    assert "student.decay" in dead
    assert "50% of the channels of spiking layer 2 fire at every timestep" in busy
    assert "student.decay" in busy
