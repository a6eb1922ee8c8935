"""``compare``: the same rows wherever they are computed, and nothing computed twice."""

import csv
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from float_networks import images as make_pixels
from float_networks import network
from typer.testing import CliRunner

from stars_deploy.artifacts import write_arrays
from stars_deploy.cli import app
from stars_deploy.comparison import tabulate_rows
from stars_deploy.config import load_config, save_config
from stars_deploy.errors import ConfigError, DataError, StarsDeployError
from stars_deploy.hardware import load_profile
from stars_deploy.pipeline import comparing
from stars_deploy.pipeline.comparing import compare_models
from stars_deploy.pipeline.directory import RunDirectory, SyntheticImages
from stars_deploy.pipeline.models import open_model, quantize_calibrated
from stars_deploy.progress import Observer
from stars_deploy.quantized import find_difference
from stars_deploy.serde import load_quantized, save_graph
from stars_deploy.sweep import work
from stars_deploy.sweep.cache import ResultCache
from stars_deploy.sweep.running import Places
from stars_deploy.sweep.tasks import SharedArray, Surroundings
from stars_deploy.sweep.work import quantization, read_activity, read_graph, simulation

SWEEP = {"timesteps": (2, 4), "bits": (8, 4), "hardware": ("loihi1", "loihi2")}


class Recorder(Observer):
    """Keeps what became of each setting, by stage."""

    def __init__(self):
        super().__init__()
        self.told, self.notes = {}, []

    def started(self, name):
        self.told[name] = []

    def advanced(self, done, total, text=""):
        if ": " in text:
            self.told[list(self.told)[-1]].append(text)

    def noted(self, text):
        self.notes.append(text)

    def finished_as(self, stage, how):
        return sorted(text.split(": ")[0] for text in self.told.get(stage, []) if text.endswith(how))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a build, as far as `compare` reads it, of a network with a loop and delays."""
    folder = RunDirectory(tmp_path_factory.mktemp("builds") / "net")
    folder.path.mkdir()
    graph = network(3, timesteps=4)
    pixels = (make_pixels(40, seed=9) * 255).astype(np.uint8)
    save_config(
        load_config(None, {"teacher": {"spec": "mine:net"}, "timesteps": 4, "bits": 8}), folder.file("config.yaml")
    )
    save_graph(graph, folder.file("graph.npz"))
    folder.save_images(
        SyntheticImages(calibration=pixels[:24], held_out=pixels[24:], teacher_classes=np.arange(16) % 3)
    )
    save_graph(
        quantize_calibrated(graph, pixels[:24] / 255, 8, folder.config().input_bits)[0], folder.file("model.npz")
    )
    return folder.path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    write_arrays(path, {"x_test": make_pixels(30).astype(np.float32), "y_test": np.arange(30) % 3})
    return str(path)


@pytest.fixture(scope="module")
def expected(run, data):
    return tabulate_rows(compare_models([run], data=data, **SWEEP))


def test_a_row_for_each_setting_on_each_chip(expected):
    order = [(row["hardware"], row["weight_bits"], row["timesteps"]) for row in expected]
    assert order == [(chip, bits, steps) for chip in ("loihi1", "loihi2") for bits in (8, 4) for steps in (2, 4)]
    assert {row["samples"] for row in expected} == {30} and {row["model"] for row in expected} == {"net"}
    first, second = expected[:4], expected[4:]
    for one, other in zip(first, second, strict=True):
        assert (one["accuracy"], one["synops"]) == (other["accuracy"], other["synops"])  # what it does: of no chip
        assert one["energy_total_j_nominal"] != other["energy_total_j_nominal"]
    for rows in (first, second):  # best among the rows of one chip
        cheapest = min(rows, key=lambda row: row["energy_total_j_nominal"])
        assert cheapest["pareto"]
    assert len({json.dumps([row["spikes"], row["synops"]]) for row in first}) == 4


def wait_once(payload, arrays, surroundings):
    """Says who it is and waits to be killed the first time; does the work of the task when it is run again."""
    folder = Path(payload["folder"])
    try:
        (folder / "begun").touch(exist_ok=False)
    except FileExistsError:
        return work._simulate(payload["payload"], arrays, surroundings)
    (folder / "draft").write_text(str(os.getpid()))
    (folder / "draft").rename(folder / "pid")
    time.sleep(60)


def waiting_for_a_kill(folder):
    """`simulation`, but its tasks begin with :func:`wait_once`."""

    def make(*arguments):
        task = simulation(*arguments)
        assert task.work is work._simulate
        payload = {"folder": str(folder), "payload": task.payload}
        return replace(task, work=wait_once, payload=payload)

    return make


def kill_who_says_so(folder):
    deadline = time.monotonic() + 15
    while not (folder / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_the_rows_are_the_same_on_a_cluster_that_loses_a_worker(run, data, expected, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'stars-deploy[dask]'")
    monkeypatch.setattr(comparing, "simulation", waiting_for_a_kill(tmp_path))
    killer = threading.Thread(target=kill_who_says_so, args=(tmp_path,))
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1", silence_logs=50
    ) as cluster:
        workers = set(cluster.scheduler_info["workers"])
        killer.start()
        places = Places(dask=cluster.scheduler_address)
        rows = tabulate_rows(compare_models([run], data=data, places=places, **SWEEP))
        killer.join()
        assert len(workers) == 2
    assert (tmp_path / "pid").exists() and rows == expected


def test_the_rows_are_the_same_when_a_process_is_killed(run, data, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "simulation", waiting_for_a_kill(tmp_path))
    killer = threading.Thread(target=kill_who_says_so, args=(tmp_path,))
    killer.start()
    recorder = Recorder()
    rows = tabulate_rows(compare_models([run], data=data, places=Places(jobs=2), observer=recorder, **SWEEP))
    killer.join()
    assert rows == expected
    assert ["killed by signal 9" in note for note in recorder.notes] == [True]


def test_each_setting_is_computed_once_and_kept(run, data, expected, tmp_path):
    cache, first, again = ResultCache(folder=tmp_path), Recorder(), Recorder()
    assert tabulate_rows(compare_models([run], data=data, cache=cache, observer=first, **SWEEP)) == expected
    built, others = "net, T = 4, 8 bits", ["net, T = 2, 4 bits", "net, T = 2, 8 bits", "net, T = 4, 4 bits"]
    assert first.finished_as("quantise", "done") == others  # the integers of one were there
    assert first.finished_as("simulate", "done") == sorted([built, *others])
    assert tabulate_rows(compare_models([run], data=data, cache=cache, observer=again, **SWEEP)) == expected
    assert again.finished_as("quantise", "from the cache") == others
    assert again.finished_as("simulate", "from the cache") == sorted([built, *others])
    assert again.finished_as("simulate", "done") == again.finished_as("quantise", "done") == []


def test_another_chip_needs_no_simulation(run, data, tmp_path):
    cache, recorder = ResultCache(folder=tmp_path), Recorder()
    compare_models([run], timesteps=(4,), data=data, hardware="loihi1", cache=cache)
    (row,) = compare_models([run], timesteps=(4,), data=data, hardware="loihi2", cache=cache, observer=recorder)
    assert row.cost.mapping.profile == load_profile("loihi2")
    assert recorder.finished_as("simulate", "from the cache") == ["net, T = 4"]


@pytest.mark.parametrize("changed", ["images", "labels", "limit", "weights"])
def test_what_a_result_depends_on_is_looked_up(run, data, tmp_path, changed):
    cache, recorder = ResultCache(folder=tmp_path / "cache"), Recorder()
    compare_models([run], timesteps=(4,), data=data, cache=cache)
    copied, other, limit = shutil.copytree(run, tmp_path / "net"), str(tmp_path / "other.npz"), None
    with np.load(data) as archive:
        pixels, labels = archive["x_test"], archive["y_test"]
    if changed == "images":
        pixels[0, 0, 0, 0] += 0.25
    elif changed == "labels":
        labels[:2] = labels[1::-1]
    elif changed == "limit":
        limit = 29
    else:
        graph = load_quantized(copied / "model.npz")
        first, *more = graph.populations
        save_graph(replace(graph, populations=(replace(first, vth=first.vth + 1), *more)), copied / "model.npz")
    write_arrays(other, {"x_test": pixels, "y_test": labels})
    compare_models([copied], timesteps=(4,), data=other, limit=limit, cache=cache, observer=recorder)
    assert recorder.finished_as("simulate", "done") == ["net, T = 4"]


def test_content_counts_and_not_names(run, data, tmp_path):
    cache, recorder = ResultCache(folder=tmp_path / "cache"), Recorder()
    one, other = shutil.copytree(run, tmp_path / "a" / "net"), shutil.copytree(run, tmp_path / "b" / "net")
    moved = shutil.copy(data, tmp_path / "moved.npz")
    rows = compare_models([run], timesteps=(2,), data=data, cache=cache)
    twice = compare_models([one, other], timesteps=(2, 4), data=str(moved), cache=cache, observer=recorder)
    assert recorder.finished_as("simulate", "from the cache") == [f"{one}, T = 2"]
    assert recorder.finished_as("simulate", "done") == [f"{one}, T = 4"]  # both models at once
    assert [row.model for row in twice] == [str(one)] * 2 + [str(other)] * 2  # told apart by their paths
    assert twice[0].evaluation.totals() == twice[2].evaluation.totals() == rows[0].evaluation.totals()


def test_a_damaged_entry_is_computed_again(run, data, expected, tmp_path):
    cache, recorder = ResultCache(folder=tmp_path), Recorder()
    compare_models([run], data=data, cache=cache, **SWEEP)
    entries = sorted((tmp_path / "results").iterdir())
    assert len(entries) == 7  # three networks, four simulations
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 0xFF
        entry.write_bytes(content)
    again = tabulate_rows(compare_models([run], data=data, cache=cache, observer=recorder, **SWEEP))
    assert again == expected
    assert len(recorder.notes) == 7 and all("damaged" in note for note in recorder.notes)


def test_the_integers_are_those_of_the_model(run):
    model = open_model(run)
    directory = RunDirectory(run)
    images = SharedArray(array=directory.images().calibration / 255)
    for steps, bits in ((2, 8), (4, 4)):
        task = quantization("q", network(3, timesteps=steps), images, bits=bits, input_bits=8, built=model.graph)
        graph = read_graph(task.work(task.payload, [images.array], Surroundings()))
        assert find_difference(graph, model.at_setting(steps, bits)) == ""
        assert graph.input == model.at_setting(steps, bits).input


def test_a_result_does_not_depend_on_threads(run, data):
    with np.load(data) as archive:
        images, labels = (SharedArray(array=archive[name]) for name in ("x_test", "y_test"))
    task = simulation("s", open_model(run).graph, images, labels)
    results = [task.work(task.payload, [images.array, labels.array], Surroundings(threads=n)) for n in (1, 2, None)]
    assert results[0] == results[1] == results[2]
    told = []
    surroundings = Surroundings(progress=told.append)
    activity = read_activity(task.work(task.payload, [images.array, labels.array], surroundings))
    assert told == [30] and activity.evaluation.samples == 30 and activity.evaluation.accuracy is not None


def test_without_an_evaluation_set_the_fidelity_stands_in(run):
    (row,) = compare_models([run], timesteps=(4,))
    held_out = RunDirectory(run).images()
    assert row.evaluation.accuracy is None and row.evaluation.samples == len(held_out.held_out) == 16
    assert row.fidelity == float((row.evaluation.predictions == held_out.teacher_classes).mean())
    with pytest.raises(DataError, match="--data"):
        compare_models([run / "model.npz"], timesteps=(4,))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_names_its_setting(run, data, tmp_path, jobs):
    copied = RunDirectory(shutil.copytree(run, tmp_path / "net"))
    images = copied.images()
    copied.save_images(replace(images, calibration=images.calibration[:, :1]))
    with pytest.raises(StarsDeployError) as caught:
        compare_models([copied.path], timesteps=(4, 2), data=data, places=Places(jobs=jobs))
    assert caught.value.where.startswith("net, T = 2: ") and "(24, 1, 5, 4)" in str(caught.value)


def profile_text(**changes):
    """The profile of Loihi 2 under another name, with changes."""
    text = (Path(comparing.__file__).parents[1] / "profiles" / "loihi2.yaml").read_text()
    for before, after in changes.values():
        assert text.count(before) == 1
        text = text.replace(before, after)
    return text


def test_a_network_that_does_not_fit_is_named_before_anything_runs(run, data, tmp_path):
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(
        profile_text(name=("name: loihi2", "name: tiny"), words=("nominal: 12000, low: 12000", "nominal: 1, low: 1"))
    )
    recorder = Recorder()
    with pytest.raises(ConfigError) as caught:
        compare_models([run], timesteps=(4,), data=data, hardware=("loihi2", str(tiny)), observer=recorder)
    assert caught.value.where.startswith("net, T = 4: --hardware tiny") and recorder.told == {}


def test_two_profiles_of_one_name_are_refused(run, data, tmp_path):
    (tmp_path / "mine.yaml").write_text(profile_text())
    with pytest.raises(ConfigError, match="--hardware: loihi2 given twice"):
        compare_models([run], data=data, hardware=("loihi2", str(tmp_path / "mine.yaml")))


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "220"})


def test_the_command_writes_what_it_prints(run, data, expected, tmp_path):
    arguments = [
        run,
        "--data",
        data,
        "--timesteps",
        "2,4",
        "--bits",
        "8,4",
        "--hardware",
        "loihi1",
        "--hardware",
        "loihi2",
    ]
    files = ["--csv", tmp_path / "t.csv", "--png", tmp_path / "t.png", "--cache", tmp_path / "cache"]
    done = invoke(*arguments, *files, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == expected
    with open(tmp_path / "t.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["energy_total_j_nominal"] for row in table] == [str(row["energy_total_j_nominal"]) for row in expected]
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "cache" / "results").iterdir())) == 7
    printed = invoke(*arguments[:-4], "--hardware", "loihi1,loihi2", "--no-cache").stdout
    assert "chip" in printed and "loihi1" in printed and "the ANN beside net" in printed
    for row in expected:
        if row["pareto"]:
            assert f"net T = {row['timesteps']}, {row['weight_bits']} bits on {row['hardware']}" in printed
            assert row["reason"] in printed
    alone = invoke(run, "--data", data, "--timesteps", "4", "--no-cache").stdout
    assert "chip" not in alone.splitlines()[2] and "estimated for loihi2" in alone
    assert "host and I/O excluded" in alone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--timesteps", "0"], ["--timesteps", "0", "1 to 4096"]),
        (["--timesteps", "2000000"], ["--timesteps", "2000000"]),
        (["--timesteps", "4,-1"], ["--timesteps", "-1"]),
        (["--timesteps", "4,4"], ["--timesteps", "4 given twice"]),
        (["--timesteps", "4,"], ["--timesteps", "numbers"]),
        (["--bits", "4,9"], ["--bits", "9"]),
        (["--hardware", "loihi1,loihi1"], ["--hardware", "loihi1 given twice"]),
        (["--hardware", "loihi9"], ["loihi9"]),
        (["--jobs", "0"], ["--jobs", "0"]),
        (["--jobs", "2", "--dask", "tcp://127.0.0.1:1"], ["--jobs", "--dask"]),
        (["--cache", "somewhere", "--no-cache"], ["--cache", "--no-cache"]),
        (["--dask", "nonsense"], ["--dask nonsense", "tcp://host:8786"]),
    ],
)
def test_wrong_input_exits_2_and_says_what(run, data, arguments, words):
    done = invoke(run, "--data", data, *arguments)
    assert done.exit_code == 2
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
