"""What a distillation leaves while it runs: JSON lines, TensorBoard, contact sheets."""

import builtins
import json

import numpy as np
import pytest
import torch
from PIL import Image

from stars_deploy.config import load_config
from stars_deploy.distill.metrics import MetricsFile, TensorBoardLog
from stars_deploy.distill.preview import CAPTION, COLUMNS, ROWS, PreviewSheets, contact_sheet
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.teacher import load_teacher

SETTINGS = {
    "timesteps": 2,
    "distill": {"steps": 10, "batch": 8, "steps_per_round": 4, "checkpoint_every": 3, "inspect_every": 2},
    "synthesis": {"batch": 10, "options": {"warmup_steps": 1, "inner_steps": 1, "width": 4, "latent": 4}},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


def make(teacher, every=3):
    distill = {**SETTINGS["distill"], "checkpoint_every": every}
    return make_distiller(load_config(None, {**SETTINGS, "distill": distill}), teacher)


def silent(*_):
    pass


def interrupted(run, step, *arguments):
    original = run.advance

    def advance():
        if run.step == step:
            raise KeyboardInterrupt
        original()

    run.advance = advance
    with pytest.raises(KeyboardInterrupt):
        run.run(silent, *arguments)


def test_rounds_are_on_disk_as_soon_as_they_are_done(teacher, tmp_path):
    file, seen = tmp_path / "m.jsonl", []

    class Reader:
        def round_done(self, distiller):
            seen.append(file.read_text().count("\n"))

        def finished(self, distiller):
            pass

    run = make(teacher)
    run.run(silent, None, [MetricsFile(file, run), Reader()])
    assert seen == [1, 2, 3]
    assert [json.loads(line) for line in file.read_text().splitlines()] == run.history


@pytest.mark.parametrize("stop", [3, 5, 8, 9])
def test_interrupted_file_ends_up_with_the_same_bytes(teacher, tmp_path, stop):
    whole = make(teacher)
    whole.run(silent, None, [MetricsFile(tmp_path / "whole.jsonl", whole)])
    file, checkpoint = tmp_path / "m.jsonl", tmp_path / "c.safetensors"
    run = make(teacher)
    interrupted(run, stop, checkpoint, [MetricsFile(file, run)])
    with open(file, "a") as stream:
        stream.write('{"step": 1')  # the process died while it wrote
    again = make(teacher)
    again.restore(checkpoint)
    again.run(silent, checkpoint, [MetricsFile(file, again)])
    assert file.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("every", "stop"), [(3, 7), (4, 9)])  # resumed at step 6, in a round, or 8, at its end
def test_tensorboard_holds_every_round_once_also_after_a_resume(teacher, tmp_path, every, stop):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, checkpoint = tmp_path / "board", tmp_path / "c.safetensors"
    run = make(teacher, every)
    interrupted(run, stop, checkpoint, [TensorBoardLog(folder, run)])
    again = make(teacher, every)
    again.restore(checkpoint)
    assert again.step == 2 * every
    again.run(silent, checkpoint, [TensorBoardLog(folder, again)])
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    found = events.Scalars("kl")
    assert [event.step for event in found] == [4, 8, 10]
    assert [event.value for event in found] == pytest.approx([entry["kl"] for entry in again.history], rel=1e-6)
    assert [event.step for event in events.Images("synthetic")] == [4, 10]


def test_missing_tensorboard_is_explained(teacher, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError("No module named 'tensorboard'")
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"--tensorboard.*pip install 'stars-deploy\[tensorboard\]'"):
        TensorBoardLog(tmp_path, make(teacher))


def test_sheets_are_written_at_inspections_and_at_the_end(teacher, tmp_path):
    run = make(teacher)
    run.run(silent, None, [PreviewSheets(tmp_path / "previews")])
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["step-000004.png", "step-000010.png"]
    with Image.open(tmp_path / "previews" / "step-000010.png") as sheet:
        assert np.array_equal(np.asarray(sheet), contact_sheet(run.pool, teacher))


def test_sheet_shows_each_image_in_the_row_of_its_class(teacher):
    """Every image is of one grey value, and a made-up teacher answers by it."""
    pool = ImagePool((1, 8, 8), 64)
    greys = torch.tensor([20, 20, 120, 220, 220, 220]) / 255
    pool.add(greys.view(-1, 1, 1, 1).expand(-1, 1, 8, 8))

    class Answers:
        labels, classes, device = ("dark", "middle", "light"), 3, torch.device("cpu")
        input = teacher.input

        def predict(self, images):
            return (images.mean((1, 2, 3)) * 2.99).long()

    sheet = contact_sheet(pool, Answers())
    pictures = sheet[:, CAPTION:]
    for row, (grey, count) in enumerate(((20, 2), (120, 1), (220, 3))):
        line = pictures[row * 50 + 25, :, 0]
        assert [int(line[column * 50 + 25]) for column in range(COLUMNS)] == [grey] * count + [255] * (COLUMNS - count)


def test_many_classes_and_odd_channels_are_shown_as_far_as_possible(teacher):
    pool = ImagePool((5, 60, 70), 8)
    pool.add(torch.rand(8, 5, 60, 70))

    class Answers:
        labels, classes, device = tuple(f"a very long name of class {i}" for i in range(100)), 100, torch.device("cpu")
        input = type("Form", (), {"shape": (5, 60, 70)})

        def predict(self, images):
            return torch.arange(len(images))

    sheet = contact_sheet(pool, Answers())
    assert sheet.shape == (ROWS * 62 + 18, CAPTION + COLUMNS * 72, 3)
    assert not (sheet == 255).all()
