"""How many steps fit into a time: a few are taken, timed and undone."""

from __future__ import annotations

import time
from collections.abc import Callable

from stars_deploy.distill.distiller import Distiller

#: Steps and rounds that are timed; the least of them counts, because a machine is never too fast.
TIMED_STEPS = 4
TIMED_ROUNDS = 2
#: Share of the time that is planned: checkpoints, and whatever else the machine does, take the rest.
PLANNED = 0.95


def plan_steps(distiller: Distiller, seconds: float) -> int:
    """Return how many student steps, with their synthesis, this machine does in a time; at least one round.

    Only to be asked before the first step. What is tried is undone: the distiller is as it was, random numbers
    included.

    Parameters
    ----------
    distiller : Distiller
    seconds : float
        Of the whole distillation [s].
    """
    plan = distiller.config.distill
    state = {name: value.clone() for name, value in distiller.state().items()}
    first = _seconds(distiller.synthesize)  # with the backbone's warm-up
    rounds = min(_seconds(distiller.synthesize) for _ in range(TIMED_ROUNDS))
    step = min(_seconds(distiller.advance) for _ in range(TIMED_STEPS))
    distiller.reset(state)
    each = rounds / plan.steps_per_round + step
    affordable = int((PLANNED * seconds - (first - rounds)) / each)
    return max(affordable, plan.steps_per_round)


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
