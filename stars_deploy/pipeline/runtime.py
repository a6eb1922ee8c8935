"""How torch and the process are set up before anything is trained."""

from __future__ import annotations

import ctypes
from typing import Any

#: Parameters of glibc's ``mallopt`` (malloc.h): how much free memory is kept, and how many blocks may be mapped.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_ALWAYS_KEPT = 2**31 - 1


def prepare_torch(threads: int | None) -> None:
    """Set the number of threads, ask for deterministic algorithms and keep freed memory, in this process.

    The same seed then gives the same bits with the same number of threads; with the faster default, an accumulation
    over two threads did not (observed after some hundred steps). Where a teacher has an operation without a
    deterministic version, torch warns and goes on.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # That also fills every new tensor with NaN, to find who reads what nobody wrote: a tenth of a step.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let the C library keep what torch frees, and return whether it does.

    glibc maps every block of more than 32 MiB anew and gives it back at once, so that each step of a training pays a
    page fault for every 4 KiB of its activations. Kept, a step on large images takes a third to a half of the time
    (docs/benchmarks.md); the process holds its peak until it ends. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no libc by that way, or one without mallopt: macOS, Windows, musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _ALWAYS_KEPT))
