"""Tasks on a Dask cluster: where one machine is not enough.

The images travel to the workers once, each task with its own network; results come back as bytes and are cached here.
A worker that is lost takes nothing with it: Dask gives its tasks to others, and where the images were lost with the
last worker that held them, they are sent again. Dask unpickles what it is sent, here and on its workers: use clusters
that you trust.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stars_deploy.errors import ConfigError, StarsDeployError
from stars_deploy.progress import Observer
from stars_deploy.sweep.content import code_version
from stars_deploy.sweep.tasks import Advanced, Array, Results, Surroundings, Task, at_fault

#: How long a scheduler may take to answer [s].
REACHED_WITHIN = 5.0
#: How long we wait for the first worker [s].
WORKERS_WITHIN = 60.0
#: How often a task is sent again after its images were lost; workers that die while doing it are counted by Dask.
ATTEMPTS = 3


@contextlib.contextmanager
def connected(address: str, *, workers_within: float = WORKERS_WITHIN) -> Iterator[ClusterRunner]:
    """Connect to the scheduler at `address`, and leave it when the block ends; unfinished tasks are cancelled.

    Parameters
    ----------
    address : str
        Such as ``tcp://host:8786``.
    workers_within : float
        How long to wait for the first worker [s].

    Raises
    ------
    ConfigError
        If Dask is not installed, nobody answers at `address`, or no worker joins.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            f"--dask {address}", "Dask is not installed here", "",
            'pip install "stars-deploy[dask]", on every machine of the cluster as well',
        ) from error  # fmt: skip
    _check_scheduler(address)
    # Not the default client: what else this process does with Dask is not ours.
    with _quiet(), Client(address, timeout=REACHED_WITHIN, set_as_default=False, name="stars-deploy") as client:
        yield ClusterRunner(client, address, workers_within=workers_within)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have Dask's client not log the tracebacks of what it lost: what matters becomes an error of ours."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_scheduler(address: str) -> None:
    """Ask whoever answers at `address` what it is: a client that does not connect cannot be closed in order."""
    from distributed import Security, rpc

    async def ask() -> str:
        security = Security().get_connection_args("client")
        async with rpc(address, connection_args=security, timeout=REACHED_WITHIN) as server:
            identity = await asyncio.wait_for(server.identity(), REACHED_WITHIN)
            return str(identity["type"])

    try:
        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop that runs, as in a notebook
            kind = thread.submit(asyncio.run, ask()).result()
    except (OSError, ValueError, TypeError, LookupError, asyncio.TimeoutError) as error:
        kind = f"nobody: {_first_line(error)}"
    if kind != "Scheduler":
        raise ConfigError(
            f"--dask {address}", f"no scheduler answers ({kind})", "an address such as tcp://host:8786",
            "start one with `dask scheduler`, and workers with `dask worker tcp://host:8786`",
        )  # fmt: skip


class ClusterRunner:
    """Does tasks on the workers of a Dask cluster, each with one thread.

    Parameters
    ----------
    client : distributed.Client
    address : str
        For messages.
    workers_within : float
        How long to wait for the first worker [s].
    """

    def __init__(self, client: Any, address: str, *, workers_within: float = WORKERS_WITHIN) -> None:
        self._client, self._address, self._patience = client, address, workers_within

    def run(self, tasks: Sequence[Task], observer: Observer, advanced: Advanced) -> Results:
        """See :meth:`stars_deploy.sweep.tasks.Runner.run`."""
        from distributed import as_completed

        self._await_workers(observer)
        sent: dict[str, Any] = {}
        begun = dict.fromkeys((task.key for task in tasks), 1)
        waiting = {self._submit(task, sent): task for task in tasks}
        try:
            completed = as_completed(list(waiting), loop=self._client.loop)
            for future in completed:
                task = waiting.pop(future)
                content = self._content(task, future)
                if content is not None:
                    yield task, content
                    continue
                # With the last worker that held them the images are gone, and with them what needed them.
                if begun[task.key] >= ATTEMPTS:
                    raise StarsDeployError(
                        task.label, f"the cluster lost its images {ATTEMPTS} times",
                        remedy="see in the logs of the workers why they die; their memory may not suffice",
                    )  # fmt: skip
                begun[task.key] += 1
                observer.noted(f"{task.label}: the cluster lost its images; they are sent again")
                self._await_workers(observer)
                sent = {key: held for key, held in sent.items() if held.status == "finished"}
                again = self._submit(task, sent)
                waiting[again] = task
                completed.add(again)
        finally:
            self._client.cancel(list(waiting))

    def _await_workers(self, observer: Observer) -> None:
        if self._client.scheduler_info()["workers"]:
            return
        observer.noted(f"{self._address} has no workers yet; waiting for one up to {self._patience:g} s")
        try:
            self._client.wait_for_workers(1, timeout=self._patience)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise ConfigError(
                f"--dask {self._address}", f"no worker joined within {self._patience:g} s", "at least one",
                f"start some with `dask worker {self._address}`",
            ) from error  # fmt: skip

    def _submit(self, task: Task, sent: dict[str, Any]) -> Any:
        """Return the future of `task`; `sent` holds those of the arrays that are on the workers already."""
        for shared in task.arrays:
            if shared.key not in sent:
                # On every worker, so that the loss of one is not the loss of the images.
                sent[shared.key] = self._client.scatter(shared.array, broadcast=True, hash=False)
        arrays = [sent[shared.key] for shared in task.arrays]
        request = pickle.dumps((task.work, task.payload))  # the scheduler need not look into it
        return self._client.submit(_perform, request, arrays, code_version(), pure=False)

    def _content(self, task: Task, future: Any) -> bytes | None:
        """Return the result; None where what the task needs was lost with the workers."""
        from distributed import CancelledError, KilledWorker

        try:
            content: bytes = future.result()
        except CancelledError as error:
            if self._client.status != "running":
                raise StarsDeployError(
                    f"--dask {self._address}", f"the scheduler was lost ({_first_line(error)})",
                    remedy="start it again and repeat the command: what was done is in the cache",
                ) from error  # fmt: skip
            return None
        except KilledWorker as error:
            raise StarsDeployError(
                task.label, f"its workers died ({_first_line(error)})",
                remedy="see in the logs of the workers why; if their memory does not suffice, use a smaller --limit",
            ) from error  # fmt: skip
        except StarsDeployError as error:
            raise at_fault(task.label, error) from error
        except (ImportError, RuntimeError) as error:
            # A worker says what it cannot import itself; the scheduler says it of the whole graph.
            missing = error if isinstance(error, ImportError) else error.__cause__
            if not isinstance(missing, ImportError):
                raise
            raise ConfigError(
                f"--dask {self._address}", f"the cluster cannot import what it is to run ({missing})", "",
                "install the same version of stars-deploy on every machine of the cluster, the scheduler's as well",
            ) from error  # fmt: skip
        return content


def _perform(request: bytes, arrays: Sequence[Array], expected: str) -> bytes:
    """Do a task on a worker, if it has the sources that the task's key was made from."""
    if code_version() != expected:
        raise ConfigError(
            "the worker's stars-deploy", f"sources {code_version()[:12]}", f"{expected[:12]}, those of this machine",
            "install the same version on every machine of the cluster",
        )  # fmt: skip
    work, payload = pickle.loads(request)
    content: bytes = work(payload, arrays, Surroundings(threads=1))
    return content


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
