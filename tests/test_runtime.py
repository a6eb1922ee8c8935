"""How the process is set up: what is asked of the C library, and what determinism costs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from stars_deploy.pipeline import runtime

#: Page faults of making a tensor of 64 MiB again and again, before and after the process was set up.
FAULTS = """
import resource, torch
from stars_deploy.pipeline.runtime import prepare_torch
def faults():
    for _ in range(20):  # the heap grows a few times until aligned blocks find their place
        torch.empty(2**24).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
prepare_torch(1)
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = (int(value) for value in ran.stdout.split())
    assert kept < plain / 10, ran.stdout


@pytest.mark.parametrize("missing", [AttributeError, OSError, TypeError])
def test_other_c_libraries_are_left_alone(monkeypatch, missing):
    def refuse(_):
        raise missing

    monkeypatch.setattr(runtime.ctypes, "CDLL", refuse)
    assert runtime.keep_freed_memory() is False


def test_determinism_fills_no_memory():
    deterministic, filled = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    threads = torch.get_num_threads()
    try:
        runtime.prepare_torch(1)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.set_num_threads(threads)
