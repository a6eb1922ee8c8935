"""Tasks in several processes of this machine.

Each worker is a fresh interpreter (``spawn``: a fork would copy the threads and locks of numba and BLAS) with a pipe of
its own, so that a worker that is killed takes one known task with it, which another worker does again. Ctrl-C reaches
this process alone, which ends the workers; should this process be killed, they notice and end themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from stars_deploy.errors import ArtifactError, StarsDeployError
from stars_deploy.progress import Observer
from stars_deploy.sweep.tasks import Advanced, Array, Results, SharedArray, Surroundings, Task, Work, at_fault

#: How often a task is begun before its loss is an error: a worker may be killed for reasons of its own, once.
ATTEMPTS = 2
#: Time to end after SIGTERM before SIGKILL [s].
GRACE = 2.0
#: What the libraries read to choose their number of threads, before they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class _Request:
    work: Work
    payload: Any
    arrays: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    content: bytes = b""
    error: StarsDeployError | None = None
    trace: str = ""


@dataclass(kw_only=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    task: Task | None = None


@dataclass(kw_only=True)
class _Round:
    """The tasks of one :meth:`ProcessRunner.run`, and where the arrays lie that they read."""

    folder: Path
    waiting: deque[Task]
    observer: Observer
    advanced: Advanced
    begun: dict[str, int] = field(default_factory=dict)

    def request(self, task: Task) -> _Request:
        """Return what a worker is sent, and say and count that the task is begun."""
        self.advanced(task, 0)
        self.begun[task.key] = self.begun.get(task.key, 0) + 1
        return _Request(work=task.work, payload=task.payload, arrays=tuple(self._spool(one) for one in task.arrays))

    def _spool(self, shared: SharedArray) -> Path:
        """Return the file of an array, which every worker maps into its memory."""
        path = self.folder / f"{shared.key}.npy"
        if not path.exists():
            try:
                np.save(path, shared.array, allow_pickle=False)
            except OSError as error:
                raise ArtifactError(
                    str(path), f"could not be written ({error.strerror})", remedy="set TMPDIR to a folder with space"
                ) from error
        return path

    def put_back(self, task: Task, code: int) -> None:
        """Have a task done again whose process ended with `code`, unless this was not the first time."""
        how = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        if self.begun[task.key] >= ATTEMPTS:
            raise StarsDeployError(
                task.label, f"its process was {how}, {ATTEMPTS} times", "",
                "if the memory does not suffice, use fewer --jobs or a smaller --limit; --jobs 1 shows more; a script "
                'that sweeps must do so below `if __name__ == "__main__":`',
            )  # fmt: skip
        self.observer.noted(f"{task.label}: its process was {how}; it is run again")
        self.waiting.appendleft(task)


class ProcessRunner:
    """Does tasks in processes of their own, which wait for more tasks until :meth:`close`.

    Parameters
    ----------
    jobs : int
        Processes at the same time, at most.
    threads : int
        Threads of each.
    """

    def __init__(self, jobs: int, *, threads: int = 1) -> None:
        self.jobs, self.threads = jobs, threads
        self._workers: list[_Worker] = []

    def run(self, tasks: Sequence[Task], observer: Observer, advanced: Advanced) -> Results:
        """See :meth:`stars_deploy.sweep.tasks.Runner.run`; if it does not come to its end, the processes are ended."""
        finished = False
        with tempfile.TemporaryDirectory(prefix="stars-deploy-") as name:
            pending = _Round(folder=Path(name), waiting=deque(tasks), observer=observer, advanced=advanced)
            try:
                self._assign(pending)
                while any(worker.task for worker in self._workers):
                    yield from self._collect(pending)
                finished = True
            finally:
                if not finished:
                    self.close()

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def _assign(self, pending: _Round) -> None:
        """Give every worker that has none a task, starting workers up to the limit."""
        while pending.waiting:
            idle = [worker for worker in self._workers if worker.task is None]
            if not idle and len(self._workers) == self.jobs:
                return
            worker = idle[0] if idle else self._start()
            worker.task = pending.waiting.popleft()
            request = pending.request(worker.task)
            with contextlib.suppress(OSError):  # it has just died: its pipe says so in `_collect`
                worker.pipe.send(request)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self.threads), daemon=True)
        with _threads_for_libraries(self.threads), _deaf_to_interrupts():
            process.start()
        there.close()  # so that the end of the process is the end of the pipe
        self._workers.append(_Worker(process=process, pipe=here))
        return self._workers[-1]

    def _collect(self, pending: _Round) -> Iterator[tuple[Task, bytes]]:
        """Wait until workers answer, and give them other tasks."""
        busy = [(worker, worker.task) for worker in self._workers if worker.task is not None]
        ready = wait([worker.pipe for worker, _ in busy])
        for worker, task in busy:
            if worker.pipe not in ready:
                continue
            worker.task = None
            try:
                answer: _Answer = worker.pipe.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                pending.put_back(task, _end(worker))
                self._assign(pending)
                continue
            if answer.error is not None:
                raise at_fault(task.label, answer.error)
            if answer.trace:
                raise RuntimeError(f"{task.label}:\n{answer.trace}")
            self._assign(pending)
            yield task, answer.content


def _end(worker: _Worker) -> int:
    """Wait until a worker has ended, help it if it does not, and return its exit code."""
    worker.process.join(GRACE)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    code = worker.process.exitcode or 0
    worker.process.close()
    worker.pipe.close()
    return code


@contextlib.contextmanager
def _threads_for_libraries(threads: int) -> Iterator[None]:
    """Have a process that starts in the block load its libraries with `threads` threads."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have a process that starts in the block not hear Ctrl-C: the one that started it does, and ends it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python's own helper process is started with the first worker, and unblocks SIGINT as it is: it has to be there.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited; a pending one is not lost
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, threads: int) -> None:
    """Do what the pipe asks for until it ends: the life of a worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_answer(pipe.recv(), threads))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # nobody is left to read a result


def _answer(request: _Request, threads: int) -> _Answer:
    try:
        arrays = [_mapped(path) for path in request.arrays]
        return _Answer(content=request.work(request.payload, arrays, Surroundings(threads=threads)))
    except StarsDeployError as error:
        return _Answer(error=_portable(error))
    except Exception:
        return _Answer(trace=traceback.format_exc())


def _mapped(path: Path) -> Array:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _portable(error: StarsDeployError) -> StarsDeployError:
    """Return `error` as it can be sent: what it got may be any object."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return type(error)(error.where, str(error.got), error.allowed, error.remedy)
    return error
