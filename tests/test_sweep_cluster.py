"""The same tasks on a Dask cluster: a local scheduler, two worker processes, one of which is killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from stars_deploy.errors import ConfigError, DataError, StarsDeployError
from stars_deploy.progress import Observer
from stars_deploy.sweep import cluster as cluster_module
from stars_deploy.sweep.running import LocalRunner, Places, opened
from stars_deploy.sweep.tasks import SharedArray, Task, run_tasks

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'stars-deploy[dask]'")


def total(payload, arrays, surroundings):
    return json.dumps({"sum": int(arrays[0].sum()) * payload["factor"], "threads": surroundings.threads}).encode()


def wait_once(payload, arrays, surroundings):
    """Says who it is and waits to be killed the first time; does :func:`total` when it is run again."""
    with contextlib.suppress(FileExistsError):
        (Path(payload["folder"]) / "begun").touch(exist_ok=False)
        draft = Path(payload["folder"]) / "draft"
        draft.write_text(str(os.getpid()))
        draft.rename(Path(payload["folder"]) / "pid")
        time.sleep(60)
    return total(payload, arrays, surroundings)


def die(payload, arrays, surroundings):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(payload, arrays, surroundings):
    raise DataError("images", "none", "some", "give some")


def name_the_process(payload, arrays, surroundings):
    time.sleep(0.2)
    return json.dumps(os.getpid()).encode()


class Recorder(Observer):
    def __init__(self):
        super().__init__()
        self.notes = []

    def noted(self, text):
        self.notes.append(text)


RAMP = SharedArray(array=np.arange(10.0))


def task(factor=1, work=total, arrays=(RAMP,), **payload):
    return Task(label=f"factor {factor}", work=work, payload={"factor": factor, **payload}, arrays=arrays)


@contextlib.contextmanager
def started(workers):
    with distributed.LocalCluster(
        n_workers=workers, processes=True, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1",
        silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture(scope="module")
def address():
    with started(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def runner(address):
    with opened(Places(dask=address)) as connected:
        yield connected


def results_of(tasks, runner, **options):
    return {task.label: result for task, result in run_tasks(tasks, runner, json.loads, **options)}


def test_a_cluster_gives_what_this_process_gives(runner):
    tasks = [task(factor) for factor in range(1, 7)]
    here = results_of(tasks, LocalRunner())
    there = results_of(tasks, runner)
    assert {name: one["sum"] for name, one in there.items()} == {name: one["sum"] for name, one in here.items()}
    assert {one["threads"] for one in there.values()} == {1}


def test_both_workers_take_part_and_neither_is_this_process(runner):
    pids = set(results_of([task(factor, name_the_process) for factor in range(4)], runner).values())
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_shared_array_travels_once(runner, monkeypatch):
    sent = []
    scatter = runner._client.scatter
    monkeypatch.setattr(runner._client, "scatter", lambda array, **how: sent.append(array) or scatter(array, **how))
    results_of([task(factor) for factor in range(5)], runner)
    assert len(sent) == 1 and sent[0] is RAMP.array


def await_file(path):
    deadline = time.monotonic() + 15
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_who_says_so(folder):
    await_file(folder / "pid")
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_the_sweep_finishes_when_a_worker_is_killed(tmp_path):
    tasks = [task(1, wait_once, folder=str(tmp_path)), *(task(factor) for factor in range(2, 7))]
    killer = threading.Thread(target=kill_who_says_so, args=(tmp_path,))
    with started(2) as cluster, opened(Places(dask=cluster.scheduler_address)) as runner:
        killer.start()
        found = results_of(tasks, runner)
        killer.join()
    assert (tmp_path / "pid").exists()
    assert {name: one["sum"] for name, one in found.items()} == {f"factor {n}": 45 * n for n in range(1, 7)}


def test_images_that_were_lost_with_the_last_worker_are_sent_again(tmp_path):
    killer = threading.Thread(target=kill_who_says_so, args=(tmp_path,))
    recorder = Recorder()
    with started(1) as cluster, opened(Places(dask=cluster.scheduler_address)) as runner:
        killer.start()
        found = results_of([task(2, wait_once, folder=str(tmp_path)), task(3)], runner, observer=recorder)
        killer.join()
    assert {name: one["sum"] for name, one in found.items()} == {"factor 2": 90, "factor 3": 135}
    assert any("lost its images" in note for note in recorder.notes)


def test_an_error_comes_back_with_its_text_and_its_setting(runner):
    with pytest.raises(DataError) as caught:
        results_of([task(1), task(2, refuse)], runner)
    error = caught.value
    assert (error.where, error.got, error.allowed, error.remedy) == ("factor 2: images", "none", "some", "give some")


def test_a_worker_of_other_sources_is_refused(runner, monkeypatch):
    monkeypatch.setattr(cluster_module, "code_version", lambda: "f" * 64)
    with pytest.raises(ConfigError, match="the worker's stars-deploy") as caught:
        results_of([task(1)], runner)
    assert "same version" in caught.value.remedy


def test_a_task_that_kills_every_worker_is_named():
    with started(2) as cluster:
        cluster.scheduler.allowed_failures = 1
        with opened(Places(dask=cluster.scheduler_address)) as runner, pytest.raises(StarsDeployError) as caught:
            results_of([task(2, die, arrays=())], runner)
    assert caught.value.where == "factor 2" and "died" in str(caught.value) and caught.value.exit_code == 2


@contextlib.contextmanager
def started_by_commands(folder, path):
    """A scheduler and a worker as a user starts them, with `path` to import from."""
    file, processes = folder / "scheduler.json", []
    for command in ("scheduler --host 127.0.0.1 --port 0", "worker --nthreads 1"):
        module, *options = command.split()
        command = [sys.executable, "-m", f"distributed.cli.dask_{module}", *options, "--no-dashboard",
                   "--scheduler-file", str(file)]  # fmt: skip
        processes.append(
            subprocess.Popen(
                command,
                cwd=folder,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        )
        deadline = time.monotonic() + 15
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    try:
        yield json.loads(file.read_text())["address"], processes[0]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_scheduler_that_is_lost_is_named(tmp_path, caplog):
    with started_by_commands(tmp_path, str(Path(__file__).parent)) as (address, scheduler):
        waiting = threading.Thread(target=lambda: (await_file(tmp_path / "pid"), scheduler.kill()))
        with opened(Places(dask=address)) as runner:
            waiting.start()
            with pytest.raises(StarsDeployError, match="the scheduler was lost") as caught:
                results_of([task(2, wait_once, folder=str(tmp_path))], runner)
        waiting.join()
    assert "cache" in caught.value.remedy and caught.value.where == f"--dask {address}"
    assert "Traceback" not in caplog.text


def test_a_cluster_without_our_package_is_told_so(tmp_path):
    (tmp_path / "stars_deploy.py").write_text("raise ImportError('there is no stars_deploy')")
    with (
        started_by_commands(tmp_path, str(tmp_path)) as (address, _),
        opened(Places(dask=address)) as runner,
        pytest.raises(ConfigError, match="there is no stars_deploy") as caught,
    ):
        results_of([task(2)], runner)
    assert "every machine" in caught.value.remedy


def test_a_cluster_without_workers_is_waited_for_and_then_named():
    recorder = Recorder()
    with started(0) as cluster:
        with (
            cluster_module.connected(cluster.scheduler_address, workers_within=0.5) as runner,
            pytest.raises(ConfigError, match=r"no worker joined within 0\.5 s") as caught,
        ):
            results_of([task(1)], runner, observer=recorder)
        assert "waiting" in recorder.notes[0] and "dask worker" in caught.value.remedy
        with cluster_module.connected(cluster.scheduler_address, workers_within=15) as runner:
            threading.Timer(0.3, cluster.scale, args=(1,)).start()
            assert results_of([task(2)], runner)["factor 2"]["sum"] == 90


@pytest.fixture
def deaf(monkeypatch):
    """A port that nobody listens on."""
    monkeypatch.setattr(cluster_module, "REACHED_WITHIN", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


def test_a_scheduler_that_is_not_reached_is_named(deaf):
    for address in (f"tcp://127.0.0.1:{deaf}", f"127.0.0.1:{deaf}", "nonsense://a:1", "tcp://", ""):
        with pytest.raises(ConfigError) as caught, opened(Places(dask=address)):
            pass
        assert caught.value.where == f"--dask {address}" and caught.value.exit_code == 2
        assert "dask scheduler" in caught.value.remedy


def test_what_answers_must_be_a_scheduler(deaf, address):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # and never says a word
        with (
            pytest.raises(ConfigError, match="nobody"),
            opened(Places(dask=f"tcp://127.0.0.1:{listener.getsockname()[1]}")),
        ):
            pass
    with opened(Places(dask=address)) as runner:
        worker = next(iter(runner._client.scheduler_info()["workers"]))
    with pytest.raises(ConfigError, match=r"no scheduler answers \(Worker\)"), opened(Places(dask=worker)):
        pass


def test_without_dask_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ConfigError, match="not installed") as caught, opened(Places(dask="tcp://127.0.0.1:8786")):
        pass
    assert "stars-deploy[dask]" in caught.value.remedy
