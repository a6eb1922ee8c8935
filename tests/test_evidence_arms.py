"""The evidence machine's arms: what they leave, that they start alike, and why they did as they did."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from evidence import mechanism, worker
from evidence.arms import PermutedRelations, RealImages, ShuffledTails, as_ann, register_all
from evidence.planning import plan_runs
from evidence_campaigns import WITH_REFERENCES, place_in, request_of, small_campaign

from stars_deploy.config import load_section
from stars_deploy.data import load_dataset
from stars_deploy.distill import Distiller
from stars_deploy.norms import norm_statistics
from stars_deploy.spiking import StudentOutput
from stars_deploy.student import NeuronModel, build_student
from stars_deploy.synthesis import registry
from stars_deploy.synthesis.objective import Observation
from stars_deploy.synthesis.objectives import RelationalConsistency, TailMatching
from stars_deploy.teacher import load_teacher


@pytest.fixture
def campaign(tmp_path):
    """Load the small campaign, changed as asked."""
    return partial(small_campaign, tmp_path)


@pytest.fixture
def place(tmp_path):
    return place_in(tmp_path)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture
def offered(monkeypatch):
    """Offer what only the evidence has, until the test ends."""
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    monkeypatch.setattr(registry, "_objectives", dict(registry._objectives))
    threads = torch.get_num_threads()
    register_all()
    yield
    torch.set_num_threads(threads)


def _done(place, campaign, arm, seed=0):
    """Do the run of an arm in this process, and return its result."""
    run = next(run for run in plan_runs(campaign) if (run.arm, run.seed) == (arm, seed))
    worker.main(request_of(place, campaign, run))
    return json.loads(place.result(run.name).read_text())


ARMS = {
    **WITH_REFERENCES,
    "placebo": {"settings": {"method": "bn", "synthesis": {"objectives": {"rca_placebo": 1.0, "tar_placebo": 0.5}}}},
    "none": {"kind": "none"},
    "ann": {"kind": "ann", "settings": {"method": "bn"}},
}


@pytest.mark.parametrize("arm", ARMS)
def test_each_kind_of_arm_leaves_all_that_is_known(campaign, place, offered, arm):
    found = _done(place, campaign(arms=ARMS), arm)
    assert 0 <= found["accuracy"] <= 1
    assert (found["samples"], found["evaluated_on"], found["seed"]) == (300, "validation", 0)
    assert found["steps"] == (0 if arm == "none" else 8)
    assert found["images"] == (0 if arm == "none" else 40)
    assert found["teacher"]["sha256"] == load_teacher().weights["sha256"]
    assert len(found["sources"]) == 64
    assert found["config"]["student"]["spec"] == "vgg:4-8"
    assert found["config"]["timesteps"] == (1 if arm == "ann" else 2)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"wall", "cpu", "synthesis"} <= found["seconds"].keys()
    assert "reconstructed from the abstract" in found["note"]
    mechanism = found["mechanism"]
    assert {len(mechanism["real"][name]) for name in ("rates", "dead", "saturated")} == {2}
    synthesised = arm not in ("real", "none")
    assert ("tail_error" in mechanism) is ("synthetic" in mechanism) is synthesised
    if synthesised:
        assert {len(errors) for errors in mechanism["tail_error"].values()} == {3}  # layers of the teacher
        assert mechanism["tail_error"].keys() == {"kappa_1", "kappa_2", "boundary"}
    weighed = {"stars": {"rca", "tar"}, "placebo": {"rca_placebo", "tar_placebo"}}.get(arm, set())
    assert weighed <= mechanism["gradient_ratios"].keys()
    assert not list((place.folder / "work").glob("*.safetensors"))


@pytest.mark.parametrize("evaluate", ["test", "validation"])
def test_images_are_read_once_after_the_last_step(campaign, place, offered, monkeypatch, evaluate):
    events = []
    advance, load, judge = Distiller.advance, worker.load_dataset, worker.accuracy

    def advanced(distiller):
        advance(distiller)
        events.append("step")

    def loaded(name, root=None, *, train=False):
        events.extend([] if train else ["test"])
        return load(name, root, train=train)

    def judged(student, held, *more):
        assert not student.training
        events.append(("accuracy", len(held.labels)))
        return judge(student, held, *more)

    monkeypatch.setattr(Distiller, "advance", advanced)
    monkeypatch.setattr(worker, "load_dataset", loaded)
    monkeypatch.setattr(worker, "accuracy", judged)
    found = _done(place, campaign(evaluate=evaluate), "stars")
    expected = ["test", ("accuracy", 360)] if evaluate == "test" else [("accuracy", 300)]
    assert events == ["step"] * 8 + expected
    assert found["evaluated_on"] == evaluate


def test_real_images_are_never_those_of_the_validation(campaign, place, offered, monkeypatch):
    dealt, judged = [], []
    deal, judge = RealImages.synthesize, worker.accuracy
    monkeypatch.setattr(
        RealImages, "synthesize", lambda source, *seen: (dealt.append(source.images), deal(source, *seen))[1]
    )
    monkeypatch.setattr(worker, "accuracy", lambda student, held: (judged.append(held.images), judge(student, held))[1])
    _done(place, campaign(arms=ARMS), "real")
    training = load_dataset("digits", train=True).images
    parts = [*dealt[0].numpy(), *judged[0]]
    assert (len(dealt[0]), len(judged[0])) == (len(training) - 300, 300)
    assert sorted(image.tobytes() for image in parts) == sorted(image.tobytes() for image in training)


def _state(campaign, teacher, arm, seed):
    run = next(run for run in plan_runs(campaign) if (run.arm, run.seed) == (arm, seed))
    distiller = worker.prepare(run, worker.settled(run), teacher)
    return distiller, {name: value.clone() for name, value in distiller.student.state_dict().items()}


def test_the_same_seed_gives_every_arm_the_same_start(campaign, teacher, offered):
    loaded = campaign(arms=ARMS)
    first, weights = _state(loaded, teacher, "backbone", 0)
    for arm in ("stars", "placebo", "ann", "real", "noise", "none"):
        other, same = _state(loaded, teacher, arm, 0)
        assert same.keys() == weights.keys()
        assert all(torch.equal(same[name], weights[name]) for name in weights), arm
        assert torch.equal(other.draws.get_state(), first.draws.get_state())
        if arm in ("stars", "placebo", "ann"):
            assert torch.equal(other.synthesis_draws.get_state(), first.synthesis_draws.get_state())
            made = zip(other.source.parameters(), first.source.parameters(), strict=True)
            assert all(torch.equal(one, another) for one, another in made), arm
    _, others = _state(loaded, teacher, "backbone", 1)
    assert not torch.equal(others["layers.0.weight"], weights["layers.0.weight"])


def test_an_interrupted_run_goes_on_and_ends_alike(campaign, place, offered, monkeypatch):
    loaded = campaign()
    whole = _done(place, loaded, "stars")
    place.result("vgg_fast_stars_seed0").unlink()
    steps = []
    advance = Distiller.advance

    def interrupted(distiller):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(distiller.step)
        advance(distiller)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Distiller, "advance", interrupted)
        _done(place, loaded, "stars")
    assert not place.result("vgg_fast_stars_seed0").exists()

    def counted(distiller):
        steps.append(distiller.step)
        advance(distiller)

    monkeypatch.setattr(Distiller, "advance", counted)
    again = _done(place, loaded, "stars")
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]  # from the checkpoint of step 3
    for result in (whole, again):
        result.pop("seconds")
    assert again == whole


def test_ann_student_of_inherited_layers_answers_like_the_teacher(teacher):
    student, _ = build_student(teacher, "inherit", 2, NeuronModel())
    images = torch.from_numpy(load_dataset("digits").images[:200])
    ann = as_ann(student).eval()
    with torch.no_grad():
        output = ann(images, potentials=True)
        assert torch.allclose(output.mean_logits(), teacher.logits(images), atol=1e-3)
    assert len(output.logits) == 1
    assert [len(spikes) for spikes in output.spikes] == [1, 1, 1]
    assert all(
        torch.equal(spikes, current.relu()) for spikes, current in zip(output.spikes, output.potentials, strict=True)
    )


def test_placebo_of_relations_is_that_of_other_samples(teacher):
    options = load_section(RelationalConsistency.Options, {})
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert float(RelationalConsistency(teacher, options).compare(features, features)) == pytest.approx(0, abs=1e-9)
    placebo = PermutedRelations(teacher, options)
    assert float(placebo.compare(features, features)) > 0.1
    # Relations alone are moved: the loss has the size that unrelated samples have.
    apart = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    real = float(RelationalConsistency(teacher, options).compare(features, apart))
    assert float(placebo.compare(features, features)) == pytest.approx(real, rel=0.3)


def test_placebo_of_tails_wants_the_shares_of_other_channels(teacher):
    options = load_section(TailMatching.Options, {"thresholds": "boundary"})
    draws = torch.Generator().manual_seed(0)
    inputs = [
        (known.mean + known.deviation() * torch.randn(20000, len(known.mean), generator=draws))
        for known in norm_statistics(teacher.module, teacher.norms)
    ]
    nothing = torch.zeros(0)
    seen = Observation(
        images=nothing, views=nothing, labels=nothing, targets=nothing, logits=nothing, inputs=inputs,
        features=nothing, part=slice(0, 4),
    )  # fmt: skip
    wanted = float(TailMatching(teacher, options)(seen))  # Gaussian inputs have the tails that it wants
    assert wanted < 1e-4
    # Channels of a layer have much the same boundary in this teacher, so its placebo is a weak one.
    assert float(ShuffledTails(teacher, options)(seen)) > 10 * wanted


# Mechanism


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_dataset("digits", train=True).images)


def _inherited(teacher):
    return build_student(teacher, "inherit", 2, NeuronModel())[0].eval()


def test_equal_images_have_no_tail_error_and_others_have(teacher, digits):
    student = _inherited(teacher)
    equal = mechanism.diagnose(teacher, student, digits[:100], digits[:100])
    assert all(error == 0 for errors in equal["tail_error"].values() for error in errors)
    assert equal["synthetic"] == equal["real"]
    other = mechanism.diagnose(teacher, student, digits[:100], torch.rand_like(digits[:100]))
    assert all(error > 0.01 for errors in other["tail_error"].values() for error in errors)
    assert "tail_error" not in mechanism.diagnose(teacher, student, digits[:100], None)


def test_tail_error_is_the_difference_of_soft_shares(teacher, digits):
    noise = torch.rand(100, *digits.shape[1:], generator=torch.Generator().manual_seed(0))
    found = mechanism.diagnose(teacher, _inherited(teacher), digits[:100], noise)["tail_error"]
    for layer, name in enumerate(teacher.norms):
        norm = dict(teacher.module.named_modules())[name]
        entered = []
        hook = norm.register_forward_hook(lambda _, given, out, kept=entered: kept.append(given[0]))
        with torch.no_grad():
            teacher.logits(digits[:100])
            teacher.logits(noise)
        hook.remove()
        mean, deviation = (one.view(1, -1, 1, 1) for one in (norm.running_mean, (norm.running_var + norm.eps).sqrt()))
        ratio = (norm.bias / norm.weight).view(1, -1, 1, 1)
        for kind, kappa in (("kappa_1", 1.0), ("kappa_2", 2.0), ("boundary", (-ratio).clamp(-2.5, 2.5))):
            shares = [torch.sigmoid(((z - mean) / deviation - kappa) / 0.25).mean((0, 2, 3)) for z in entered]
            assert found[kind][layer] == pytest.approx(float((shares[0] - shares[1]).abs().mean()), rel=1e-3), kind


def test_a_student_that_computes_the_same_agrees_and_relates_alike(teacher, digits):
    seen = mechanism.diagnose(teacher, as_ann(_inherited(teacher)).eval(), digits[:300], None)["real"]
    assert seen["agreement"] == 1
    assert seen["gram_correlation"] == pytest.approx(1, abs=1e-3)
    apart, _ = build_student(teacher, "vgg:4-8", 2, NeuronModel())
    assert mechanism.diagnose(teacher, apart.eval(), digits[:300], None)["real"]["gram_correlation"] < 0.9


def test_dead_and_saturated_channels_are_counted(teacher, digits):
    student = _inherited(teacher)
    before = mechanism.diagnose(teacher, student, digits[:100], None)["real"]
    norm = student.norms()[0]
    with torch.no_grad():
        norm.bias[:4] = -100.0
        norm.bias[4:6] = 100.0
    seen = mechanism.diagnose(teacher, student, digits[:100], None)["real"]
    channels = len(norm.bias)
    assert before["dead"][0] == before["saturated"][0] == 0
    assert seen["dead"][0] == pytest.approx(4 / channels)
    assert seen["saturated"][0] == pytest.approx(2 / channels)
    rates = student(digits[:100]).rates()[0].transpose(0, 1).flatten(1).mean(1)
    assert seen["rates"][0] == pytest.approx(float(rates.mean()), rel=1e-4)


def test_agreement_and_rates_are_those_of_the_spikes(teacher, digits):
    """Just beside the bounds: one spike in 400 is not dead, ``SATURATED`` of the time not yet saturated."""
    images = digits[:100]
    answers = teacher.predict(images)
    answers[:25] = (answers[:25] + 1) % 10
    spikes = torch.zeros(4, 100, 4, 1, 1)
    spikes[0, 0, 1] = 1
    most = round(mechanism.SATURATED * 400)
    assert most == pytest.approx(mechanism.SATURATED * 400)
    spikes[:, :, 2:] = torch.stack([_first(most), _first(most + 1)], 2)[..., None, None]
    logits = torch.nn.functional.one_hot(answers, 10).float().expand(4, 100, 10)

    def student(_):
        return StudentOutput(logits=logits, spikes=(spikes,))

    seen = mechanism._seen(teacher, student, images)
    assert seen["agreement"] == pytest.approx(0.75)
    assert seen["dead"] == [0.25]
    assert seen["saturated"] == [0.25]


def _first(count):
    """Return (4, 100) values of which the first are 1."""
    return (torch.arange(400) < count).float().view(4, 100)


def test_diversity_is_within_classes(teacher, digits):
    student = _inherited(teacher)
    answers = teacher.predict(digits)
    first, second = digits[answers == 0][:1], digits[answers == 1][:1]
    two = torch.cat([first.repeat(10, 1, 1, 1), second.repeat(10, 1, 1, 1)])
    collapsed = mechanism.diagnose(teacher, student, two, None)["real"]["diversity"]
    assert collapsed["pixel_distance"] == pytest.approx(0, abs=1e-3)  # however far apart the two classes are
    assert collapsed["feature_cosine"] == pytest.approx(1, abs=1e-4)
    real = mechanism.diagnose(teacher, student, digits[:200], None)["real"]["diversity"]
    assert 0.3 < real["pixel_distance"] < 1.5
    assert real["feature_cosine"] < 0.99


def test_gradient_ratios_are_means_over_the_rounds_that_were_measured():
    history = [
        {"gradient/bn": 2.0, "gradient/rca": 1.0, "gradient/tar": 4.0, "synthesis/rca": 9.0},
        {"synthesis/bn": 1.0},
        {"gradient/bn": 4.0, "gradient/rca": 6.0},
        {"gradient/bn": 0.0, "gradient/rca": 6.0},
    ]
    assert mechanism.gradient_ratios(history) == pytest.approx({"rca": (0.5 + 1.5) / 2, "tar": 2.0})
    assert mechanism.gradient_ratios([]) == {}
