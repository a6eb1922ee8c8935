"""Where a sweep runs: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from stars_deploy.errors import ConfigError
from stars_deploy.progress import Observer
from stars_deploy.sweep.processes import ProcessRunner
from stars_deploy.sweep.tasks import Advanced, Results, Runner, Surroundings, Task, labelled

#: Below this much work in all, about half a minute of one processor, starting processes takes longer than it saves
#: [synaptic operations, those of zero weights and silent neurons included].
WORTH_PROCESSES = 1e12


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where to run.

    Parameters
    ----------
    jobs : int, optional
        Processes; 1 for this one alone. By default one for each processor that this process may use, but no more
        than there are tasks, and only this one where the work is small.
    dask : str, optional
        Address of a Dask scheduler, such as ``tcp://host:8786``, in place of processes here.

    Raises
    ------
    ConfigError
        If `jobs` is below 1, or both are given.
    """

    jobs: int | None = None
    dask: str | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError("--jobs", self.jobs, "at least 1")
        if self.jobs is not None and self.dask is not None:
            raise ConfigError("--jobs", f"{self.jobs}, with --dask", "one of the two", "the cluster decides by itself")


class LocalRunner:
    """Does tasks in this process, one after the other; each may use every processor."""

    def run(self, tasks: Sequence[Task], observer: Observer, advanced: Advanced) -> Results:
        """See :meth:`stars_deploy.sweep.tasks.Runner.run`."""
        for task in tasks:
            advanced(task, 0)

            def progress(steps: int, task: Task = task) -> None:
                advanced(task, steps)

            with labelled(task.label):
                arrays = [shared.array for shared in task.arrays]
                content = task.work(task.payload, arrays, Surroundings(threads=None, progress=progress))
            yield task, content


class AdaptiveRunner:
    """Does tasks in as many processes as pay off, see :class:`Places`."""

    def __init__(self) -> None:
        self._processes: ProcessRunner | None = None

    def run(self, tasks: Sequence[Task], observer: Observer, advanced: Advanced) -> Results:
        """See :meth:`stars_deploy.sweep.tasks.Runner.run`."""
        jobs = min(processors(), len(tasks))
        if jobs == 1 or sum(task.effort for task in tasks) < WORTH_PROCESSES:
            return LocalRunner().run(tasks, observer, advanced)
        if self._processes is None:
            self._processes = ProcessRunner(jobs, threads=processors() // jobs)
        return self._processes.run(tasks, observer, advanced)

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.close()


@contextmanager
def opened(places: Places) -> Iterator[Runner]:
    """Give what runs tasks at `places`, and leave nothing running after the block.

    Raises
    ------
    ConfigError
        If a Dask cluster is asked for that is not reached, or Dask is not installed.
    """
    if places.dask is not None:
        from stars_deploy.sweep.cluster import connected  # loads Dask

        with connected(places.dask) as cluster:
            yield cluster
    elif places.jobs == 1:
        yield LocalRunner()
    else:
        with closing(_in_processes(places.jobs)) as runner:
            yield runner


def _in_processes(jobs: int | None) -> ProcessRunner | AdaptiveRunner:
    return AdaptiveRunner() if jobs is None else ProcessRunner(jobs, threads=max(1, processors() // jobs))


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
