"""The first stage of a build: what it plans, refuses and leaves."""

import json

import pytest
import torch
from PIL import Image

from stars_deploy import norms
from stars_deploy.config import load_config
from stars_deploy.distill import Distiller, budget
from stars_deploy.distill.mixing import mixed
from stars_deploy.distill.parallel import Parallel
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.directory import RunDirectory
from stars_deploy.pipeline.distilling import distil, make_distiller, objectives_in_force, on_device, plan_budget
from stars_deploy.progress import Observer
from stars_deploy.student import load_student
from stars_deploy.synthesis import registry
from stars_deploy.teacher import load_teacher


class Notes(Observer):
    def __init__(self):
        super().__init__()
        self.texts = []

    def noted(self, text):
        self.texts.append(text)


def settings(**over):
    base = {
        "timesteps": 2, "student": {"spec": "vgg:4-6"}, "held_out_images": 16, "calibration_images": 8, "threads": 1,
        "distill": {"steps": 9, "batch": 8, "steps_per_round": 3, "checkpoint_every": 4, "inspect_every": 2},
        "synthesis": {"batch": 10, "options": {"warmup_steps": 1, "inner_steps": 1, "width": 4, "latent": 4}},
    }  # fmt: skip
    for key, value in over.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return load_config(None, base)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


def started(path, config):
    directory = RunDirectory(path)
    directory.start(config, resume=False, overwrite=False)
    return directory


def test_distillation_leaves_student_images_metrics_and_sheets(teacher, tmp_path):
    config = settings(student={"spec": "vgg:4-6", "surrogate": "tanh", "decay": 0.5}, distill={"tensorboard": True})
    directory = started(tmp_path / "run", config)
    distil(config, teacher, directory, Notes(), False, Parallel())
    student, plan = load_student(directory.file("student.safetensors"))
    assert (plan.neuron.surrogate, plan.neuron.decay) == ("tanh", 0.5)
    assert student.layers[2].cell.p.method == "tanh"
    lines = [json.loads(line) for line in directory.file("distill.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]
    sheets = sorted(path.name for path in directory.file("previews").iterdir())
    assert sheets == ["step-000003.png", "step-000009.png"]
    with Image.open(directory.file("previews") / sheets[0]) as sheet:
        assert sheet.size[0] > 500
    assert list(directory.file("tensorboard").iterdir())
    images = directory.images()
    assert images.calibration.shape == (8, 1, 8, 8)
    assert images.held_out.shape == (16, 1, 8, 8)
    # What another build left does not stay beside the new one.
    directory.start(settings(seed=1), resume=False, overwrite=True)
    assert not directory.file("previews").exists()
    assert not directory.file("tensorboard").exists()


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(teacher, tmp_path):
    config = settings(distill={"learning_rate": 1e35, "checkpoint_every": 1})
    directory = started(tmp_path / "run", config)
    with pytest.raises(ConfigError, match=r"distillation: (loss|gradient).*finite.*checkpoint"):
        distil(config, teacher, directory, Notes(), False, Parallel())
    assert directory.file("checkpoint.safetensors").is_file()
    assert not directory.file("student.safetensors").exists()


def test_channels_that_were_dead_a_round_ago_are_told_of(teacher, tmp_path, monkeypatch):
    """In the last round they are alive: they have just been brought back."""

    def look(run, output):
        dead = float(run.step == 6)
        run.history[-1].update({"dead/1": dead, "saturated/1": 0.0, "dead/2": 0.0, "saturated/2": 0.0})

    monkeypatch.setattr(Distiller, "_look_after", look)
    notes = Notes()
    distil(settings(), teacher, started(tmp_path / "run", settings()), notes, False, Parallel())
    (text,) = notes.texts
    assert text.startswith("100% of the channels of spiking layer 1 never fire")


def test_budget_becomes_steps_once(teacher, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(budget, "plan_steps", lambda distiller, seconds: asked.append(seconds) or 12)
    config, notes = settings(distill={"budget": "90s"}), Notes()
    directory = RunDirectory(tmp_path / "run")
    planned = plan_budget(config, teacher, directory, notes, False, Parallel())
    assert planned.distill.steps == 12
    assert planned.distill.model_copy(update={"steps": 9}) == config.distill
    assert asked == [90.0]
    assert notes.texts == ["12 steps are planned for a budget of 90 s"]
    directory.start(planned, resume=False, overwrite=False)
    monkeypatch.setattr(budget, "plan_steps", lambda *_: pytest.fail("planned anew"))
    assert plan_budget(config, teacher, directory, notes, True, Parallel()) == planned
    monkeypatch.setattr(budget, "plan_steps", lambda *_: 99)
    other = settings(distill={"budget": "2m"})
    assert plan_budget(other, teacher, directory, notes, True, Parallel()).distill.steps == 99
    # What is overwritten may have been of another network, or unreadable.
    directory.file("config.yaml").write_text("timesteps: [")
    assert plan_budget(config, teacher, directory, notes, False, Parallel()).distill.steps == 99
    assert plan_budget(settings(), teacher, directory, notes, False, Parallel()).distill.steps == 9


@pytest.mark.parametrize("name", ["tpu", "cuda:77", "meta?"])
def test_devices_that_are_not_there_are_refused(teacher, name):
    with pytest.raises(ConfigError, match=r"--device: .*; allowed: cpu, or a device of this machine"):
        on_device(teacher, name, Parallel())
    assert on_device(teacher, "cpu", Parallel()) is teacher


@pytest.mark.parametrize("thresholds", ["gaussian", "boundary", "student"])
def test_distillation_runs_on_another_device(teacher, monkeypatch, thresholds):
    """The meta device computes nothing, but refuses to mix with the CPU as a GPU would."""

    def unchecked(name, layer):
        known = {"mean": layer.running_mean, "var": layer.running_var, "gamma": layer.weight, "beta": layer.bias}
        return norms.NormStatistics(name=name, **known)

    monkeypatch.setattr(norms, "_statistics", unchecked)  # a value of this device cannot be looked at
    monkeypatch.setattr(registry, "check_trained", lambda _: None)
    config = settings(method="stars", synthesis={"objectives": {"tar": {"thresholds": thresholds}}})
    run = make_distiller(config, on_device(teacher, "meta", Parallel()))
    run._freeze()
    labels = run.source.balanced(10)
    images = run.source.generator(run.source.normal(10, 4), labels.labels)
    terms = run.source.scorer.terms(images, labels, run.student, 0.0, torch.Generator())
    assert {"bn", "onehot", "rca", "tar", "diversity", "adversarial"} == terms.keys()
    assert all(term.device.type == "meta" for term in terms.values())
    shown = mixed(images, ("affine", "mixup", "cutmix"), torch.Generator())
    run._unfreeze()
    output = run.trained(shown)
    loss = torch.stack([output.mean_logits().sum(), *(spikes.sum() for spikes in output.spikes)]).sum()
    loss.backward()
    assert all(parameter.grad.device.type == "meta" for parameter in run.student.parameters())


def test_report_says_which_objectives_were_in_force():
    found = objectives_in_force(settings(method="tar", synthesis={"objectives": {"tar": {"thresholds": "gaussian"}}}))
    assert found["tar"]["thresholds"] == "gaussian"
    assert found["tar"]["weight"] == 0.5
    assert "rca" not in found
    assert objectives_in_force(settings(method="stars", synthesis={"backbone": "noise"})) == {}
