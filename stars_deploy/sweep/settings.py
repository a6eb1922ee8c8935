"""The plan of a sweep: which settings there are, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from stars_deploy.errors import ConfigError

#: Most timesteps of a sweep: what a network does is kept for each neuron and timestep.
MOST_TIMESTEPS = 4096
#: Bits of a weight on the chip.
LEAST_BITS, MOST_BITS = 2, 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network to run: of which model, and how.

    Parameters
    ----------
    model : int
        Position among the models.
    bits : int or None
        Weight bits; None for those that it was built with.
    timesteps : int
    """

    model: int
    bits: int | None
    timesteps: int


def plan_settings(models: int, timesteps: Sequence[int], bits: Sequence[int] | None = None) -> tuple[Setting, ...]:
    """Return the settings of `models` models, in the order of the table: by model, then bits, then timesteps.

    Parameters
    ----------
    models : int
    timesteps : sequence of int
        1 to :data:`MOST_TIMESTEPS`, each once.
    bits : sequence of int, optional
        Weight bits, 2 to 8, each once.

    Raises
    ------
    ConfigError
        If there is nothing to run, or a number is given twice or is out of range.
    """
    if models < 1:
        raise ConfigError("MODEL", "none given", "at least one built directory or .net file")
    check_numbers("--timesteps", timesteps, 1, MOST_TIMESTEPS)
    if bits is not None:
        check_numbers("--bits", bits, LEAST_BITS, MOST_BITS)
    return tuple(
        Setting(model=model, bits=width, timesteps=steps)
        for model, width, steps in product(range(models), (None,) if bits is None else bits, timesteps)
    )


def check_numbers(option: str, values: Sequence[int], low: int, high: int) -> None:
    """Refuse values that are out of range or not there at all, and values given twice, by name.

    Raises
    ------
    ConfigError
        Naming `option` and the values at fault.
    """
    allowed = f"whole numbers from {low} to {high}, each once"
    wrong = [value for value in values if not low <= value <= high]
    if not values or wrong:
        raise ConfigError(option, ", ".join(map(str, wrong)) or "none", allowed)
    check_once(option, values, allowed)


def check_once(option: str, values: Sequence[object], allowed: str) -> None:
    """Refuse values given twice, by name.

    Raises
    ------
    ConfigError
        Naming `option` and the values at fault.
    """
    seen: set[object] = set()
    twice = [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
    if twice:
        raise ConfigError(option, f"{', '.join(map(str, twice))} given twice", allowed)
