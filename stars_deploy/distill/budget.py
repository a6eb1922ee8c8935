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

    The time is also that of this planning, and of the held-out images at the end.

    Only to be asked before the first step. What is tried is undone: the distiller is as it was, random numbers
    included.

    Parameters
    ----------
    distiller : Distiller
    seconds : float
        Of the whole distillation [s].
    """
    begun = time.perf_counter()
    plan = distiller.config.distill
    state = {name: value.clone() for name, value in distiller.state().items()}
    first = _seconds(distiller.synthesize)  # with the backbone's warm-up
    distiller.step = plan.steps // 2  # where an objective whose schedule begins late is most likely to count
    rounds = min(_seconds(distiller.synthesize) for _ in range(TIMED_ROUNDS))
    step = min(_seconds(distiller.advance) for _ in range(TIMED_STEPS))
    images = distiller.pool.added // len(distiller.history) // distiller.parallel.world
    held_out = -(-distiller.config.held_out_images // images) * rounds
    distiller.reset(state)
    each = rounds / plan.steps_per_round + step
    spent = time.perf_counter() - begun
    affordable = int((PLANNED * seconds - spent - held_out - (first - rounds)) / each)
    return max(affordable, plan.steps_per_round)


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
