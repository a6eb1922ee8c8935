"""Work that can be done in any process, and doing much of it: each task once, looked up and kept in a cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from stars_deploy.errors import ArtifactError, StarsDeployError
from stars_deploy.progress import Observer
from stars_deploy.sweep.cache import ResultCache
from stars_deploy.sweep.content import code_version, content_key

Array = npt.NDArray[Any]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedArray:
    """An array that several tasks read; it travels to each worker once.

    Parameters
    ----------
    array : array
    key : str
        Of its content; computed.
    """

    array: Array
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", content_key(self.array))


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a task is given by whoever runs it; its result does not depend on it.

    Parameters
    ----------
    threads : int or None
        Threads that it may use; None for one on each processor.
    progress : callable, optional
        ``progress(done)``, of the task's ``size``.
    """

    threads: int | None = 1
    progress: Callable[[int], None] | None = None


#: Does a task: its payload, its shared arrays, its surroundings; returns the result as bytes. At the top of a module,
#: so that another process finds it.
Work = Callable[[Any, Sequence[Array], Surroundings], bytes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A piece of work.

    Parameters
    ----------
    label : str
        What a user calls it, such as ``digits, T = 4, 8 bits``.
    work : callable
        See :data:`Work`.
    payload : object
        What is its own; it is pickled on the way to another process.
    arrays : tuple of SharedArray
        What it reads together with others.
    size : int
        Steps in its progress, such as samples.
    effort : float
        Roughly how much it computes [synaptic operations].
    key : str
        Of everything that its result depends on: the work, the payload, the arrays, and the code; computed.
    """

    label: str
    work: Work
    payload: Any
    arrays: tuple[SharedArray, ...] = ()
    size: int = 1
    effort: float = 0.0
    key: str = field(init=False)

    def __post_init__(self) -> None:
        name = f"{self.work.__module__}.{self.work.__qualname__}"
        key = content_key(name, self.payload, [shared.key for shared in self.arrays], code_version())
        object.__setattr__(self, "key", key)


#: Told that `steps` of the size of a task are done.
Advanced = Callable[[Task, int], None]
#: Tasks with their results, as they finish.
Results = Generator[tuple[Task, bytes], None, None]


class Runner(Protocol):
    """Does tasks that do not depend on each other."""

    def run(self, tasks: Sequence[Task], observer: Observer, advanced: Advanced) -> Results:
        """Yield each task with its result, as they finish.

        Parameters
        ----------
        tasks : sequence of Task
        observer : Observer
            Hears what went wrong and was mended, such as the loss of a worker.
        advanced : callable
            Told of progress within a task, where that is known.

        Raises
        ------
        StarsDeployError
            What a task raised, its label in front; or a task that could not be done.
        """
        ...


def run_tasks(
    tasks: Sequence[Task],
    runner: Runner,
    decode: Callable[[bytes], Result],
    *,
    cache: ResultCache | None = None,
    observer: Observer | None = None,
) -> Generator[tuple[Task, Result], None, None]:
    """Yield each distinct task with its result as they finish, those that the cache holds first.

    Tasks of equal content are done once; the first stands for all (match them by ``key``).

    Parameters
    ----------
    tasks : sequence of Task
    runner : Runner
        Does what the cache does not hold.
    decode : callable
        From the bytes that the work returned to the result.
    cache : ResultCache, optional
        Where results are looked up and kept.
    observer : Observer, optional
        Hears of each task that is done.

    Raises
    ------
    StarsDeployError
        See :meth:`Runner.run`.
    """
    watch = observer or Observer()
    firsts: dict[str, Task] = {}
    for task in tasks:
        firsts.setdefault(task.key, task)
    distinct = list(firsts.values())
    tally = _Tally(distinct, watch)
    missing = []
    for task in distinct:
        found = None if cache is None else cache.find(task.key, decode, watch.noted)
        if found is None:
            missing.append(task)
            continue
        tally.finish(task, "from the cache")
        yield task, found
    if not missing:
        return
    missing.sort(key=lambda task: -task.effort)  # a long one that starts last keeps the others waiting
    # Closed at once when whoever takes the results stops: nothing of it may go on running.
    with closing(runner.run(missing, watch, tally.advance)) as results:
        for task, content in results:
            if cache is not None and not _kept(cache, task, content, watch):
                cache = None
            tally.finish(task, "done")
            yield task, decode(content)


def at_fault(label: str, error: StarsDeployError) -> StarsDeployError:
    """Return `error` with the label of its task in front of where it happened."""
    return type(error)(f"{label}: {error.where}", error.got, error.allowed, error.remedy)


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Have errors of the block say what they happened to."""
    try:
        yield
    except StarsDeployError as error:
        raise at_fault(label, error) from error


def _kept(cache: ResultCache, task: Task, content: bytes, watch: Observer) -> bool:
    try:
        cache.keep(task.key, content)
    except ArtifactError as error:  # a full disk must not cost the result itself
        watch.noted(f"nothing is cached: {error.where} {error.got}; choose another folder with --cache, or --no-cache")
        return False
    return True


class _Tally:
    """Adds up the progress of many tasks, in their own steps."""

    def __init__(self, tasks: Sequence[Task], watch: Observer) -> None:
        self._watch = watch
        self._done = dict.fromkeys((task.key for task in tasks), 0)
        self._total = sum(task.size for task in tasks)

    def advance(self, task: Task, steps: int) -> None:
        """Hear that `steps` of `task` are done."""
        self._done[task.key] = steps
        self._watch.advanced(sum(self._done.values()), self._total, task.label)

    def finish(self, task: Task, how: str) -> None:
        """Hear that `task` is done."""
        self._done[task.key] = task.size
        self._watch.advanced(sum(self._done.values()), self._total, f"{task.label}: {how}")
