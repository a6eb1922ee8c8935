"""Tasks in this process and in several: each once, in any order, whatever happens to a process."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from stars_deploy.errors import ConfigError, DataError, StarsDeployError
from stars_deploy.progress import Observer
from stars_deploy.sweep import tasks as tasks_module
from stars_deploy.sweep.cache import ResultCache
from stars_deploy.sweep.processes import ProcessRunner
from stars_deploy.sweep.running import WORTH_PROCESSES, AdaptiveRunner, LocalRunner, Places, opened, processors
from stars_deploy.sweep.tasks import SharedArray, Task, run_tasks


def total(payload, arrays, surroundings):
    """The sum of all arrays, times the payload."""
    return json.dumps(sum(int(array.sum()) for array in arrays) * payload["factor"]).encode()


def describe(payload, arrays, surroundings):
    import threadpoolctl

    pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    return json.dumps(
        {"pid": os.getpid(), "threads": surroundings.threads, "pools": pools, "writable": arrays[0].flags.writeable,
         "memmap": isinstance(arrays[0], np.memmap)}
    ).encode()  # fmt: skip


def refuse(payload, arrays, surroundings):
    raise DataError("images", {"a": 1}, "others", "look for others")


def refuse_with_a_lock(payload, arrays, surroundings):
    raise DataError("images", threading.Lock())


def fail(payload, arrays, surroundings):
    return 1 // 0


def die_at_first(payload, arrays, surroundings):
    """Is killed the first time, does :func:`total` the second."""
    marker = Path(payload["marker"])
    with contextlib.suppress(FileExistsError):
        marker.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return total(payload, arrays, surroundings)


def die(payload, arrays, surroundings):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(payload, arrays, surroundings):
    os._exit(3)


def wait_forever(payload, arrays, surroundings):
    (Path(payload["folder"]) / str(os.getpid())).touch()
    time.sleep(3600)


def advance(payload, arrays, surroundings):
    for step in range(1, payload["factor"] + 1):
        surroundings.progress(step)
    return b"1"


class Recorder(Observer):
    def __init__(self):
        super().__init__()
        self.steps, self.notes = [], []

    def advanced(self, done, total, text=""):
        self.steps.append((done, total, text))

    def noted(self, text):
        self.notes.append(text)


RAMP = SharedArray(array=np.arange(10.0))


def task(factor=1, work=total, arrays=(RAMP,), **options):
    payload = {"factor": factor, **options.pop("payload", {})}
    return Task(label=f"factor {factor}", work=work, payload=payload, arrays=arrays, **options)


def results_of(tasks, runner, **options):
    try:
        return {task.label: result for task, result in run_tasks(tasks, runner, json.loads, **options)}
    finally:
        if not isinstance(runner, LocalRunner):
            runner.close()


EXPECTED = {f"factor {factor}": 45 * factor for factor in range(1, 7)}


@pytest.mark.parametrize("runner", [LocalRunner(), ProcessRunner(2), ProcessRunner(1), ProcessRunner(9)])
def test_every_runner_gives_the_same(runner):
    assert results_of([task(factor) for factor in range(1, 7)], runner) == EXPECTED


def test_the_key_of_a_task_is_everything_that_its_result_depends_on(monkeypatch):
    base = task()
    assert task(size=7, effort=3.0).key == base.key
    assert Task(label="other name", work=total, payload={"factor": 1}, arrays=(RAMP,)).key == base.key
    assert SharedArray(array=np.arange(10.0)).key == RAMP.key
    others = [task(2), task(work=describe), task(arrays=()), task(arrays=(RAMP, RAMP))]
    others.append(task(arrays=(SharedArray(array=np.arange(1.0, 11.0)),)))
    monkeypatch.setattr(tasks_module, "code_version", lambda: "another version")
    others.append(task())
    assert len({base.key, *(other.key for other in others)}) == 7


def counted(payload, arrays, surroundings):
    with open(payload["log"], "a") as log:
        log.write("done\n")
    return b"1"


def test_equal_tasks_are_done_once(tmp_path):
    payload = {"log": str(tmp_path / "log")}
    tasks = [
        task(work=counted, payload=payload),
        task(2, counted, payload=payload),
        task(work=counted, payload=payload),
    ]
    found = [done for done, _ in run_tasks(tasks, LocalRunner(), json.loads)]
    assert found == tasks[:2]
    assert (tmp_path / "log").read_text() == "done\n" * 2


def test_what_the_cache_holds_is_not_done_again(tmp_path):
    cache, payload = ResultCache(folder=tmp_path / "cache"), {"log": str(tmp_path / "log")}
    first = Recorder()
    tasks = [task(factor, counted, payload=payload, size=factor) for factor in (1, 2, 3)]
    assert len(results_of(tasks[1:], LocalRunner(), cache=cache, observer=first)) == 2
    assert [step for step in first.steps if step[2].endswith("done")] == [
        (2, 5, "factor 2: done"), (5, 5, "factor 3: done"),
    ]  # fmt: skip
    again = Recorder()
    assert results_of(tasks, LocalRunner(), cache=cache, observer=again) == dict.fromkeys(
        ("factor 1", "factor 2", "factor 3"), 1
    )
    assert (tmp_path / "log").read_text() == "done\n" * 3
    assert [step[2] for step in again.steps] == [
        "factor 2: from the cache", "factor 3: from the cache", "factor 1", "factor 1: done",
    ]  # fmt: skip
    assert again.steps[-1][:2] == (6, 6)


def test_a_damaged_entry_is_done_again(tmp_path):
    cache = ResultCache(folder=tmp_path)
    assert results_of([task()], LocalRunner(), cache=cache) == {"factor 1": 45}
    (entry,) = (tmp_path / "results").iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"\n45", b"\n46"))
    recorder = Recorder()
    assert results_of([task()], LocalRunner(), cache=cache, observer=recorder) == {"factor 1": 45}
    assert "damaged" in recorder.notes[0]
    assert results_of([task()], LocalRunner(), cache=cache) == {"factor 1": 45}


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path):
    (tmp_path / "file").touch()
    recorder = Recorder()
    cache = ResultCache(folder=tmp_path / "file")
    assert results_of([task(), task(2)], LocalRunner(), cache=cache, observer=recorder) == {
        "factor 1": 45, "factor 2": 90,
    }  # fmt: skip
    (note,) = recorder.notes
    assert "nothing is cached" in note and "--no-cache" in note


def test_nothing_is_started_where_the_cache_holds_everything(tmp_path):
    class Refusing(LocalRunner):
        def run(self, tasks, observer, advanced):
            raise AssertionError("there is nothing to do")

    cache = ResultCache(folder=tmp_path)
    results_of([task()], LocalRunner(), cache=cache)
    assert results_of([task()], Refusing(), cache=cache) == {"factor 1": 45}
    assert results_of([], Refusing()) == {}


def test_progress_within_a_task_is_told():
    recorder = Recorder()
    results_of([task(2, advance, size=2), task(3, advance, size=3)], LocalRunner(), observer=recorder)
    assert [step[:2] for step in recorder.steps] == [(done, 5) for done in (0, 1, 2, 2, 2, 3, 4, 5, 5)]


def test_workers_have_their_threads_and_read_shared_arrays_in_place():
    tasks = [task(factor, describe) for factor in range(4)]
    before = dict(os.environ)
    told = results_of(tasks, ProcessRunner(2, threads=1)).values()
    assert os.environ == before
    assert len({one["pid"] for one in told}) == 2 and os.getpid() not in {one["pid"] for one in told}
    for one in told:
        assert one["threads"] == 1 and set(one["pools"]) <= {1} and one["pools"]
        assert not one["writable"] and not one["memmap"]
    (here,) = results_of([task(0, describe)], LocalRunner()).values()
    assert here["pid"] == os.getpid() and here["threads"] is None


def test_the_process_of_a_task_that_is_killed_is_replaced(tmp_path):
    marker = {"marker": str(tmp_path / "killed")}
    tasks = [task(1), task(2, die_at_first, payload=marker), *(task(factor) for factor in range(3, 7))]
    recorder = Recorder()
    assert results_of(tasks, ProcessRunner(2), observer=recorder) == EXPECTED
    (note,) = recorder.notes
    assert note == "factor 2: its process was killed by signal 9 (Killed); it is run again"


@pytest.mark.parametrize(("work", "words"), [(die, "killed by signal 9 (Killed)"), (leave, "ended with exit code 3")])
def test_a_task_that_kills_its_process_every_time_is_named(work, words):
    with pytest.raises(StarsDeployError) as caught:
        results_of([task(1), task(2, work)], ProcessRunner(2))
    assert caught.value.where == "factor 2" and words in str(caught.value) and "2 times" in str(caught.value)
    assert "--jobs" in caught.value.remedy and caught.value.exit_code == 2


@pytest.mark.parametrize("runner", [LocalRunner(), ProcessRunner(2)])
def test_an_error_comes_back_with_its_text_and_its_setting(runner):
    with pytest.raises(DataError) as caught:
        results_of([task(1), task(2, refuse)], runner)
    error = caught.value
    assert (error.where, error.got, error.allowed) == ("factor 2: images", {"a": 1}, "others")
    assert error.remedy == "look for others"


def test_an_error_that_holds_what_cannot_be_sent_comes_back_as_text():
    with pytest.raises(DataError, match="factor 2: images: <unlocked"):
        results_of([task(2, refuse_with_a_lock)], ProcessRunner(1))


def test_a_defect_comes_back_with_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as caught:
        results_of([task(2, fail)], ProcessRunner(1))
    assert "factor 2" in str(caught.value) and "return 1 // 0" in str(caught.value)
    with pytest.raises(ZeroDivisionError):
        results_of([task(2, fail)], LocalRunner())


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_that(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_a_failure_ends_the_other_processes(tmp_path):
    tasks = [task(1, wait_forever, payload={"folder": str(tmp_path)}), task(2, refuse)]
    with pytest.raises(DataError):
        results_of(tasks, ProcessRunner(2))
    assert not any(alive(int(path.name)) for path in tmp_path.iterdir())


def test_processes_wait_for_more_tasks_until_they_are_closed():
    with opened(Places(jobs=2)) as runner:
        first = [json.loads(found) for _, found in run_tasks([task(n, describe) for n in (1, 2)], runner, bytes)]
        again = [json.loads(found) for _, found in run_tasks([task(n, describe) for n in (3, 4)], runner, bytes)]
        assert {one["pid"] for one in first} == {one["pid"] for one in again} and len(first) == 2
        os.kill(first[0]["pid"], signal.SIGKILL)  # while it has nothing to do
        await_that(lambda: not alive(first[0]["pid"]))
        after = [json.loads(found)["pid"] for _, found in run_tasks([task(n, describe) for n in (5, 6)], runner, bytes)]
        assert first[1]["pid"] in after and first[0]["pid"] not in after
        assert all(alive(pid) for pid in after)
    await_that(lambda: not any(alive(pid) for pid in after))


def test_whoever_stops_taking_results_ends_the_processes(tmp_path):
    tasks = [task(1), task(2, wait_forever, payload={"folder": str(tmp_path)})]
    running = run_tasks(tasks, ProcessRunner(2), json.loads)
    assert next(running)[1] == 45
    running.close()
    assert not any(alive(int(path.name)) for path in tmp_path.iterdir())


SWEEP = """
import sys
sys.path.insert(0, {tests!r})
from test_sweep_running import ProcessRunner, results_of, task, wait_forever
if __name__ == "__main__":
    try:
        results_of([task(n, wait_forever, payload={{"folder": {folder!r}}}) for n in (1, 2)], ProcessRunner(2))
    except KeyboardInterrupt:
        sys.exit(7)
"""


def deaf_to_interrupts(pid):
    """Whether a process blocks SIGINT; true where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return True
    (blocked,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked, 16) >> (signal.SIGINT - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_after_an_interrupt_or_a_kill(tmp_path, number):
    pids = tmp_path / "pids"
    pids.mkdir()
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(tests=str(Path(__file__).parent), folder=str(pids)))
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        await_that(lambda: len(list(pids.iterdir())) == 2 or process.poll() is not None)
        assert all(deaf_to_interrupts(int(path.name)) for path in pids.iterdir())
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as Ctrl-C does: every process of the terminal
        else:
            process.kill()
        _, stderr = process.communicate(timeout=15)
        assert process.returncode == (7 if number == signal.SIGINT else -number), stderr
        assert "Traceback" not in stderr
        await_that(lambda: not any(alive(int(path.name)) for path in pids.iterdir()))
        if number == signal.SIGINT:
            assert not list(tmp_path.glob("stars-deploy-*"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_sweep_running import *\nresults_of([task()], ProcessRunner(1))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_errors_can_be_pickled_on_the_way():
    error = pickle.loads(pickle.dumps(DataError("a", {"b": 1}, "c", "d")))
    assert (error.where, error.got, error.allowed, error.remedy) == ("a", {"b": 1}, "c", "d")


def test_small_work_stays_in_this_process(monkeypatch):
    monkeypatch.setattr("stars_deploy.sweep.running.processors", lambda: 2)
    small = results_of([task(1, describe, effort=1.0), task(2, describe, effort=1.0)], AdaptiveRunner())
    assert {one["pid"] for one in small.values()} == {os.getpid()}
    one = results_of([task(1, describe, effort=2 * WORTH_PROCESSES)], AdaptiveRunner())
    assert {one["pid"] for one in one.values()} == {os.getpid()}
    large = results_of([task(n, describe, effort=WORTH_PROCESSES) for n in range(3)], AdaptiveRunner())
    assert len({one["pid"] for one in large.values()}) == 2 and os.getpid() not in {o["pid"] for o in large.values()}
    assert {one["threads"] for one in large.values()} == {1}


def test_places():
    for wrong in ({"jobs": 0}, {"jobs": -1}, {"jobs": 2, "dask": "tcp://127.0.0.1:8786"}):
        with pytest.raises(ConfigError, match="--jobs"):
            Places(**wrong)
    with opened(Places(jobs=1)) as runner:
        assert isinstance(runner, LocalRunner)
    with opened(Places()) as runner:
        assert isinstance(runner, AdaptiveRunner)
    with opened(Places(jobs=7)) as runner:
        assert isinstance(runner, ProcessRunner) and (runner.jobs, runner.threads) == (7, max(1, processors() // 7))
