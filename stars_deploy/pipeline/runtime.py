"""How torch is set up before anything is trained."""

from __future__ import annotations


def prepare_torch(threads: int | None) -> None:
    """Set the number of threads, and ask for deterministic algorithms, in this process.

    The same seed then gives the same bits with the same number of threads; with the faster default, an accumulation
    over two threads did not (observed after some hundred steps). Where a teacher has an operation without a
    deterministic version, torch warns and goes on.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
