import copy
import json
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import stars_deploy
from stars_deploy.config import DistillConfig, load_config
from stars_deploy.data import load_dataset
from stars_deploy.distill import Distiller
from stars_deploy.distill.budget import plan_steps
from stars_deploy.distill.losses import TeacherAnswer, follow, observe
from stars_deploy.errors import ArtifactError, ConfigError, TeacherError
from stars_deploy.student import NeuronModel, StudentOutput, build_student
from stars_deploy.synthesis.objectives.relations import align_relations
from stars_deploy.teacher import load_teacher
from stars_deploy.weights import read_tensors, write_tensors

TINY = {
    "distill": {"steps": 9, "batch": 16, "steps_per_round": 4, "checkpoint_every": 3},
    "synthesis": {
        "batch": 20,
        "pool": 64,
        "flip": True,
        "options": {"inner_steps": 1, "warmup_steps": 2, "width": 4, "latent": 8},
    },
    "timesteps": 2,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads may differ in their last bits
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


def distiller(teacher, spec="inherit", **over):
    content = {
        **TINY,
        **{key: {**TINY.get(key, {}), **value} if isinstance(value, dict) else value for key, value in over.items()},
    }
    config = load_config(None, content)
    torch.manual_seed(config.seed)
    student, scales = build_student(teacher, spec, config.timesteps, NeuronModel())
    return Distiller(teacher=teacher, student=student, scales=scales, config=config)


def silent(done, of, text):
    pass


def bits(student):
    return {name: value.clone() for name, value in student.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_distilling_raises_agreement_with_the_teacher_on_real_digits(teacher):
    images = torch.from_numpy(load_dataset("digits").images)

    def agreement(student):
        with torch.no_grad():
            return float((student.eval()(images).mean_logits().argmax(1) == teacher.predict(images)).float().mean())

    run = distiller(
        teacher,
        distill={"steps": 40, "batch": 64, "steps_per_round": 5},
        synthesis={"batch": 64, "flip": False, "options": {"warmup_steps": 30, "latent": 32}},
        timesteps=4,
    )
    before = agreement(run.student)
    student = run.run(silent)
    assert agreement(student) > max(0.8, before + 0.2)
    assert not student.training
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert run.history[-1]["kl"] < run.history[0]["kl"]


def test_history_is_json_and_complete(teacher):
    seen = []
    run = distiller(teacher)
    run.run(lambda done, of, text: seen.append((done, of, text)))
    assert [(done, of) for done, of, _ in seen] == [(4, 9), (8, 9), (9, 9)]
    assert all(text.startswith("kl ") for _, _, text in seen)
    history = json.loads(json.dumps(run.history, allow_nan=False))
    assert [entry["step"] for entry in history] == [4, 8, 9]
    names = {
        "step",
        "images",
        "kl",
        "kl_per_timestep",
        "rates",
        *(f"synthesis/{k}" for k in ("bn", "onehot", "adversarial", "diversity", "rca", "tar")),
        *(f"{what}/{layer}" for what in ("dead", "saturated") for layer in (1, 2, 3)),
    }
    gradients = {f"gradient/{name}" for name in ("bn", "onehot", "adversarial", "diversity", "rca", "tar")}
    unfinished = {name for name in names if not name.startswith(("dead", "saturated"))}  # the last round is shorter
    assert [entry.keys() for entry in history] == [names | gradients, names, unfinished]
    assert [entry["images"] for entry in history] == [20, 40, 60]


@pytest.mark.parametrize("spec", ["inherit", "vgg:4-6"])
def test_seed_decides(teacher, spec):
    one, same, other = (bits(distiller(teacher, spec, seed=seed).run(silent)) for seed in (1, 1, 2))
    assert equal(one, same)
    assert not equal(one, other)


def interrupted(run, step, file):
    """Run until `step` steps are done, as if the process died then."""
    original = run.advance

    def advance():
        if run.step == step:
            raise KeyboardInterrupt
        original()

    run.advance = advance
    with pytest.raises(KeyboardInterrupt):
        run.run(silent, file)


BACKBONE_OPTIONS = {
    "fast": {},
    "dfq": {"options": {"warmup_steps": 1, "width": 4, "latent": 8, "fresh": 2}},
    "cmi": {"options": {"iterations": 2, "width": 4, "latent": 8, "negatives": 8, "head": 4}},
    "deepinversion": {"options": {"iterations": 2}},
    "noise": {"options": {}},
}


@pytest.mark.parametrize("spec", ["inherit", "vgg:4-6"])
@pytest.mark.parametrize("backbone", BACKBONE_OPTIONS)
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(teacher, tmp_path, spec, backbone):
    synthesis = {**BACKBONE_OPTIONS[backbone], "backbone": backbone}
    if backbone == "fast":  # with what objectives remember
        synthesis["objectives"] = {"bn": {"momentum": 0.9}}
    options = {"synthesis": synthesis, "distill": {"mixing": ["affine", "mixup"], "relations": 0.1}}
    whole = distiller(teacher, spec, **options)
    expected = bits(whole.run(silent))
    file = tmp_path / "c.safetensors"
    interrupted(distiller(teacher, spec, **options), 7, file)  # in the middle of a round, after the checkpoint at 6
    again = distiller(teacher, spec, **options)
    torch.manual_seed(12345)  # whatever else the process drew
    again.restore(file)
    assert again.step == 6
    assert equal(expected, bits(again.run(silent)))
    assert again.history == whole.history
    # What is drawn after the end is the same as well.
    assert torch.equal(again.held_out(20), whole.held_out(20))
    assert torch.equal(again.pool.images, whole.pool.images)


@pytest.mark.parametrize(("spec", "weight"), [("inherit", "rate_matching"), ("vgg:4-6", "relations")])
def test_losses_that_ask_nothing_of_the_readout_can_be_resumed(teacher, tmp_path, spec, weight):
    options = {"distill": {"kl": 0, "per_timestep": 0, "rate_matching": 0, "relations": 0, weight: 1.0}}
    whole = distiller(teacher, spec, **options)
    readout = whole.student.layers[-1].weight.detach().clone()
    expected = bits(whole.run(silent))
    assert torch.equal(whole.student.layers[-1].weight, readout)
    assert all(parameter.grad is not None for parameter in whole.student.parameters())  # as DDP asks for
    file = tmp_path / "c.safetensors"
    interrupted(distiller(teacher, spec, **options), 7, file)
    again = distiller(teacher, spec, **options)
    again.restore(file)
    assert equal(expected, bits(again.run(silent)))


def test_a_loss_without_terms_is_refused(teacher):
    nothing = {"kl": 0, "per_timestep": 0}
    distiller(teacher, "inherit", distill=nothing)  # rates are matched
    with pytest.raises(ConfigError, match=r"every term of the student's loss has weight 0.*rate_matching where"):
        distiller(teacher, "vgg:4-6", distill=nothing)
    with pytest.raises(ConfigError, match="every term"):
        distiller(teacher, "inherit", distill={**nothing, "rate_matching": 0})


def test_run_may_die_at_any_step(teacher, tmp_path):
    options = {"distill": {"checkpoint_every": 1}}
    expected = bits(distiller(teacher, **options).run(silent))
    for step in range(1, 9):
        file = tmp_path / f"{step}.safetensors"
        interrupted(distiller(teacher, **options), step, file)
        again = distiller(teacher, **options)
        again.restore(file)
        assert again.step == step
        assert equal(expected, bits(again.run(silent))), step


def test_killed_process_is_continued_to_the_same_bits(teacher, tmp_path):
    """A process that is killed without warning while it distils, and another one that goes on."""
    text = """
        import json, os, signal, sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from stars_deploy.config import load_config
        from stars_deploy.pipeline.distilling import make_distiller
        from stars_deploy.teacher import load_teacher
        file = Path(sys.argv[1])
        run = make_distiller(load_config(None, json.loads(sys.argv[2])), load_teacher())
        if file.exists():
            run.restore(file)
        original = run.advance
        def advance():
            original()
            if run.step == 5 and sys.argv[3] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        run.advance = advance
        run.run(lambda *_: None, file)
        run.save(file.with_suffix(".end"))
        print(json.dumps(run.step))
    """
    file = tmp_path / "c.safetensors"
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), str(file), json.dumps(TINY), "kill"],
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert read_tensors(file)[1]["distiller"]["step"] == 3
    assert in_fresh_python(text, file, json.dumps(TINY), "go on") == 9
    whole = distiller(teacher)
    whole.run(silent)
    found, description = read_tensors(file.with_suffix(".end"))
    assert description["distiller"]["history"] == whole.history
    assert all(torch.equal(found[f"student/{name}"], value) for name, value in bits(whole.student).items())


def test_checkpointing_changes_nothing(teacher, tmp_path):
    plain, kept = distiller(teacher), distiller(teacher)
    assert equal(bits(plain.run(silent)), bits(kept.run(silent, tmp_path / "c.safetensors")))
    _, description = read_tensors(tmp_path / "c.safetensors")
    assert description["distiller"]["step"] == 6


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"timesteps": 3},
        {"distill": {"steps": 10}},
        {"distill": {"learning_rate": 0.01}},
        {"synthesis": {"batch": 30}},
        {"synthesis": {"objectives": {"tar": 0.1}}},
        {"method": "bn"},
        {"student": {"decay": 0.5}},
    ],
)
def test_checkpoint_of_other_settings_is_refused(teacher, tmp_path, other):
    distiller(teacher).save(tmp_path / "c.safetensors")
    fresh = distiller(teacher, **other)
    before = bits(fresh.student)
    with pytest.raises(ArtifactError, match=r"other settings.*without --resume"):
        fresh.restore(tmp_path / "c.safetensors")
    assert equal(before, bits(fresh.student))


def test_checkpoint_may_be_continued_with_other_checkpointing(teacher, tmp_path):
    first = distiller(teacher)
    first.save(tmp_path / "c.safetensors")
    other = distiller(teacher, distill={"checkpoint_every": 1})
    other.restore(tmp_path / "c.safetensors")
    assert equal(bits(first.student), bits(other.student))


def test_damaged_checkpoints_are_refused(teacher, tmp_path):
    file = tmp_path / "c.safetensors"
    with pytest.raises(ArtifactError, match=r"does not exist"):
        distiller(teacher).restore(file)
    run = distiller(teacher)
    run.run(silent, file)
    whole = file.read_bytes()
    tensors, description = read_tensors(file)
    file.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match=r"not a readable checkpoint"):
        distiller(teacher).restore(file)
    for name in ("pool", "draws/student", "backbone/generator.expand.weight", "adam/0/exp_avg"):
        for changed in (None, torch.zeros(3)):
            damaged = {key: value for key, value in tensors.items() if key != name}
            if changed is not None:
                damaged[name] = changed
            write_tensors(damaged, description, file)
            with pytest.raises(ArtifactError, match=r"not a readable checkpoint"):
                distiller(teacher).restore(file)
    for wrong in ({}, {"distiller": 3}, {"distiller": {}}):
        write_tensors(tensors, wrong, file)
        with pytest.raises(ArtifactError, match=r"not a readable checkpoint"):
            distiller(teacher).restore(file)


def test_failed_checkpoint_leaves_the_older_one(teacher, tmp_path):
    file = tmp_path / "c.safetensors"
    run = distiller(teacher)
    run.save(file)
    before = file.read_bytes()
    run.history.append({"step": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"could not be written"):
            run.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_loss_that_is_not_finite_is_refused(teacher):
    run = distiller(teacher, distill={"learning_rate": 1e30})
    with pytest.raises(ConfigError, match=r"finite.*lower"):
        run.run(silent)


def broken_teacher(change):
    teacher = copy.deepcopy(load_teacher())
    change([layer for layer in teacher.module if isinstance(layer, torch.nn.BatchNorm2d)])
    return teacher


def fresh(layers):
    for layer in layers:
        layer.reset_running_stats()


def half_dead(layers):
    layers[1].running_var[1:] = 0


@pytest.mark.parametrize(
    ("change", "words"),
    [(fresh, r"mean 0 and variance 1.*before any training.*train mode"), (half_dead, r"zero running variance in 97%")],
)
def test_statistics_that_say_nothing_are_refused(change, words):
    with pytest.raises(TeacherError, match=words):
        distiller(broken_teacher(change))


def test_last_good_checkpoint_outlives_a_loss_that_is_not_finite(teacher, tmp_path):
    file = tmp_path / "c.safetensors"
    run = distiller(teacher)
    original = run.advance

    def advance():
        if run.step == 7:
            run.student.layers[0].weight.data.fill_(float("nan"))
        original()

    run.advance = advance
    with pytest.raises(ConfigError, match=r"distillation: gradient nan at step 7.*checkpoint"):
        run.run(silent, file)
    again = distiller(teacher)
    again.restore(file)
    assert again.step == 6
    assert all(bool(torch.isfinite(value).all()) for value in bits(again.student).values())
    assert equal(bits(again.run(silent)), bits(distiller(teacher).run(silent)))


def test_inherited_statistics_stay_and_others_are_estimated(teacher):
    inherited, plain = distiller(teacher), distiller(teacher, "vgg:4-6")
    before = [norm.running_var.clone() for norm in inherited.student.norms()]
    for run in (inherited, plain):
        run.run(silent)
    assert all(
        torch.equal(norm.running_var, kept) for norm, kept in zip(inherited.student.norms(), before, strict=True)
    )
    assert not any(torch.equal(norm.running_var, torch.ones_like(norm.running_var)) for norm in plain.student.norms())


def test_observed_activations_are_the_teachers(teacher):
    images = torch.rand(5, 1, 8, 8)
    answer = observe(teacher, images)
    assert torch.equal(answer.logits, teacher.logits(images))
    values, expected = teacher.normalized(images), []
    for layer in teacher.module:
        values = layer(values)
        if isinstance(layer, torch.nn.ReLU):
            expected.append(values)
    assert len(answer.activations) == 3
    assert all(torch.allclose(one, other) for one, other in zip(answer.activations, expected, strict=True))


def test_following_is_its_formula():
    torch.manual_seed(0)
    logits, each = torch.randn(5, 3) * 4, torch.randn(2, 5, 3)
    spikes = ((torch.rand(2, 5, 4) > 0.5).float(), (torch.rand(2, 5, 6) > 0.5).float())
    wanted = [torch.rand(5, 4), torch.rand(5, 6)]
    plan = DistillConfig(temperature=3.0, kl=0.9, per_timestep=0.4, rate_matching=0.7, relations=0.3)
    output, answer = StudentOutput(logits=each, spikes=spikes), TeacherAnswer(logits=logits, activations=wanted)
    loss, terms = follow(output, answer, [1.5, 2.5], plan)

    def divergence(student):
        one, two = (logits / 3).softmax(1), (student / 3).softmax(1)
        return float((9 * (one * (one / two).log()).sum(1)).mean())

    expected = {
        "kl": 0.9 * divergence(each.mean(0)),
        "kl_per_timestep": 0.4 * (divergence(each[0]) + divergence(each[1])) / 2,
        "rates": 0.7 * sum(
            float(functional.mse_loss(scale * layer.mean(0), target) / target.square().mean())
            for scale, layer, target in zip((1.5, 2.5), spikes, wanted, strict=True)
        ) / 2,
        "relations": 0.3 * float(align_relations(wanted[1], spikes[1].mean(0))),
    }  # fmt: skip
    assert terms == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(sum(expected.values()), rel=1e-5)
    off = plan.model_copy(update={"per_timestep": 0.0, "rate_matching": 0.0, "relations": 0.0})
    assert follow(output, answer, [1.5, 2.5], off)[1].keys() == {"kl"}


def in_fresh_python(text, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_distiller_cannot_reach_data_sets():
    loaded = in_fresh_python(
        """
        import json, sys
        import stars_deploy.distill
        print(json.dumps(sorted(sys.modules)))
        """
    )
    assert "stars_deploy.synthesis.objectives" in loaded
    for name in ("stars_deploy.data", "stars_deploy.training", "sklearn", "torchvision"):
        assert not [module for module in loaded if module == name or module.startswith(f"{name}.")]


def test_no_data_file_is_opened_while_distilling(tmp_path):
    """Every file opened by Python between a loaded teacher and a finished student, but Python's own code."""
    recorded = in_fresh_python(
        """
        import json, sys
        from pathlib import Path
        import torch
        import torch._dynamo  # the first optimiser imports it, and it reads what is installed
        torch.set_num_threads(1)
        from stars_deploy.config import load_config
        from stars_deploy.distill import Distiller
        from stars_deploy.student import NeuronModel, build_student
        from stars_deploy.teacher import load_teacher
        folder, config = Path(sys.argv[1]), load_config(None, json.loads(sys.argv[2]))
        teacher = load_teacher()
        sys.modules["stars_deploy.data"] = sys.modules["sklearn.datasets"] = sys.modules["torchvision"] = None
        opened, on = [], [True]
        def audit(event, arguments):
            if event == "open" and on[0]:
                opened.append(str(arguments[0]))
        sys.addaudithook(audit)
        student, scales = build_student(teacher, "inherit", config.timesteps, NeuronModel())
        run = Distiller(teacher=teacher, student=student, scales=scales, config=config)
        run.run(lambda *_: None, folder / "c.safetensors")
        distilling = list(opened)
        (folder / "data.bin").write_bytes(b"data")
        (folder / "data.bin").read_bytes()
        on[0] = False
        print(json.dumps([distilling, opened[len(distilling):]]))
        """,
        tmp_path,
        json.dumps(TINY),
    )
    distilling, afterwards = recorded
    assert any(path.endswith("data.bin") for path in afterwards)  # the hook sees what is read
    assert any(str(tmp_path) in path for path in distilling)  # the checkpoint's own writing
    code = (".py", ".pyc", ".so")
    methods = str(Path(stars_deploy.__file__).parent / "presets" / "methods")
    strange = [
        path
        for path in distilling
        if not path.startswith((str(tmp_path), methods)) and not path.endswith(code) and ".pyc." not in path
    ]
    assert strange == [], strange


def test_budget_is_planned_from_what_steps_take_and_leaves_no_trace(teacher, monkeypatch):
    plain, asked = distiller(teacher), distiller(teacher)
    clock = [0.0]
    for name, seconds in (("synthesize", 2.0), ("advance", 0.5)):
        original = getattr(asked, name)

        def timed(original=original, seconds=seconds, name=name):
            # The warm-up of the first round takes longer.
            clock[0] += seconds + (10.0 if name == "synthesize" and not asked.history else 0.0)
            original()

        monkeypatch.setattr(asked, name, timed)
    monkeypatch.setattr("stars_deploy.distill.budget.time.perf_counter", lambda: clock[0])
    # A step takes 0.5 s, and a quarter of a round of 2 s; the first round takes 10 s more. Planning takes three rounds
    # and four steps, and the images at the end take some more rounds.
    at_the_end = 2 * math.ceil(asked.config.held_out_images / asked.config.synthesis.batch)
    assert at_the_end > 2
    assert plan_steps(asked, 200.0) == int((0.95 * 200 - (12 + 4 + 2) - at_the_end - 10) / 1.0)
    assert plan_steps(asked, 1.0) == 4
    monkeypatch.undo()
    assert equal(bits(plain.run(silent)), bits(asked.run(silent)))
    assert asked.history == plain.history
    assert torch.equal(asked.held_out(20), plain.held_out(20))
