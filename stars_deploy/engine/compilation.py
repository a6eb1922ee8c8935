"""How the engine's loops are compiled: by numba, without the GIL, and kept on disk for the next process."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def _digest_sources() -> str:
    digest = 0
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest = zlib.crc32(path.read_bytes(), digest)
    return f"{digest:08x}"


_SOURCES = _digest_sources()


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled into whatever calls it: handing over arrays takes longer than a few sums."""
    inlined_function: Callable[..., Any] = njit(nogil=True, forceinline=True)(function)
    return inlined_function


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled on its first call for each combination of argument types.

    numba looks at one file only to tell whether what it kept is out of date; the name under which it keeps this
    function changes with every file of the engine.
    """
    function.__qualname__ += f"_{_SOURCES}"
    try:
        compiled_function: Callable[..., Any] = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep it in: neither beside this file nor in the user's cache
        compiled_function = njit(nogil=True)(function)
    return compiled_function
