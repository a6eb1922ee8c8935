"""The joules that a machine counts itself: Linux's powercap interface to RAPL (Intel, and AMD since Linux 5.11).

``/sys/class/powercap/intel-rapl:N`` is a zone; its ``energy_uj`` counts microjoules and starts again at 0 after
``max_energy_range_uj`` (Documentation/power/powercap/powercap.rst of the Linux sources). Counted here are the zones
``package-*`` (cores, caches, memory controller) and ``dram``. Others overlap them: ``core`` and ``uncore`` are parts of
a package, ``psys`` is the whole platform, and ``intel-rapl-mmio`` shows the package a second time.

A counter knows no processes: what else runs on the package is counted as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Where Linux shows power zones.
POWERCAP = Path("/sys/class/powercap")
_ROOT_ONLY = "energy_uj is readable by root alone since Linux 5.10 (CVE-2020-8694)"


@dataclass(frozen=True, kw_only=True)
class EnergyZone:
    """One counter of a machine.

    Parameters
    ----------
    name : str
        ``package-0``, ``dram``, ...; a ``dram`` is named after its package as well.
    file : Path
        Its ``energy_uj``.
    range_uj : int
        What it counts to before it starts again at 0 [uJ].
    """

    name: str
    file: Path
    range_uj: int


@dataclass(frozen=True, kw_only=True)
class EnergyCounter:
    """The zones that are read together; none where a machine exposes none, and `reason` says why.

    Parameters
    ----------
    zones : tuple of EnergyZone
    reason : str
        Why there are no zones; empty where there are.
    """

    zones: tuple[EnergyZone, ...]
    reason: str = ""

    def read(self) -> tuple[int, ...]:
        """Return what each zone stands at [uJ].

        Raises
        ------
        OSError, ValueError
            If a file has become unreadable, or holds no number.
        """
        return tuple(_number(zone.file) for zone in self.zones)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy of all zones between two readings [J].

        A zone that stands lower than before has started again at 0, once: at 200 W a usual range of 262 kJ lasts for
        20 minutes, so readings must be less apart than that.
        """
        spent = 0
        for zone, start, end in zip(self.zones, before, after, strict=True):
            spent += end - start if end >= start else end - start + zone.range_uj
        return spent * 1e-6


def find_energy_counter(folder: Path = POWERCAP) -> EnergyCounter:
    """Return the counter of this machine, without zones where it exposes none that can be read.

    A machine of several packages is counted whole or not at all.

    Parameters
    ----------
    folder : Path
    """
    places = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
    if not places:
        return EnergyCounter(zones=(), reason=f"no RAPL zones in {folder} (not Linux, a virtual machine, or no driver)")
    zones: list[EnergyZone] = []
    try:
        for place in places:
            name = (place / "name").read_text(encoding="ascii").strip()
            if name.startswith("package") or name == "dram":
                zones.append(_zone(place, f"{name} of {_parent(place)}" if name == "dram" else name))
    except PermissionError as error:
        return EnergyCounter(zones=(), reason=f"{error.filename} cannot be read: {_ROOT_ONLY}")
    except (OSError, ValueError) as error:
        return EnergyCounter(zones=(), reason=f"a RAPL zone cannot be read ({error})")
    if not any(zone.name.startswith("package") for zone in zones):
        return EnergyCounter(zones=(), reason=f"no zone of a whole package in {folder}")
    return EnergyCounter(zones=tuple(zones))


def _zone(place: Path, name: str) -> EnergyZone:
    zone = EnergyZone(name=name, file=place / "energy_uj", range_uj=_number(place / "max_energy_range_uj"))
    _number(zone.file)  # may be forbidden although the others are not
    return zone


def _parent(place: Path) -> str:
    """Return the name of the zone that a zone such as ``intel-rapl:0:2`` is part of."""
    parent = place.with_name(place.name.rpartition(":")[0])
    return (parent / "name").read_text(encoding="ascii").strip()


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
