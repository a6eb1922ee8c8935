"""CPU time and memory of a whole session of processes, read from ``/proc``: Lava runs one process for each layer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: Fields of ``/proc/PID/stat`` after the command: session, and user and system time [ticks] (proc(5), counted from 3).
_SESSION, _UTIME, _STIME = 6 - 3, 14 - 3, 15 - 3


def session_cpu_seconds() -> float:
    """Return the user and system time [s] that all living processes of this session have used, to 10 ms each.

    Raises
    ------
    OSError
        Where there is no ``/proc``.
    """
    ticks = sum(int(fields[_UTIME]) + int(fields[_STIME]) for _, fields in _session_members())
    return ticks / os.sysconf("SC_CLK_TCK")


def session_memory_mb() -> float:
    """Return the memory [MB] of all processes of this session, what they share counted once (``Pss``)."""
    total = 0
    for place, _ in _session_members():
        with contextlib.suppress(OSError):
            lines = (place / "smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _session_members() -> Iterator[tuple[Path, list[str]]]:
    session = os.getsid(0)
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # a process that has just ended
            # The command is in parentheses and may hold any character.
            fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[_SESSION]) == session:
                yield place, fields
