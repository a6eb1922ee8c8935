"""More than one process, started by torchrun: what they share, and what each does for itself.

Every process synthesises a batch of its own, and all images go into every process's pool, in the order of the
processes. In the student's step all draw the same images, ``distill.batch`` for each process, and take a share each;
gradients are averaged by DistributedDataParallel, and batch norms in training see the statistics of all shares. So a
step is, but for rounding, that of one process with as many times the batch.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from stars_deploy.errors import ConfigError
from stars_deploy.student import Student, StudentOutput

#: What torchrun tells each process.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How long a process waits for the others before it gives up [s]: one that failed shall not hold up the rest for long.
PATIENCE = 300.0
#: Between the seeds of two processes' synthesis; any number but 0 does.
SEED_STEP = 1_000_003


class Parallel:
    """One process, or this process among several.

    Attributes
    ----------
    rank, world : int
        Which of how many processes this is.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._averaged: weakref.WeakSet[_Averaged] = weakref.WeakSet()

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def diversify(self, draws: torch.Generator, seed: int) -> None:
        """Give the synthesis of this process random numbers of its own; those of the first stay as they are."""
        if self.rank:
            draws.manual_seed(seed + SEED_STEP * self.rank)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensors of that shape of all processes, in their order."""
        if self.world == 1:
            return [values]
        parts = [torch.empty_like(values) for _ in range(self.world)]
        distributed.all_gather(parts, values.contiguous())
        return parts

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, without a gradient."""
        if self.world == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total / self.world

    def average(self, module: nn.Module) -> None:
        """Set every floating-point number of a module's state to its mean over all processes."""
        if self.world > 1:
            for value in module.state_dict().values():
                if value.is_floating_point():
                    value.copy_(self.mean(value))

    def own(self, batch: Tensor) -> Tensor:
        """Return this process's share of what all have drawn."""
        return batch.chunk(self.world)[self.rank]

    def agree(self, number: int) -> int:
        """Return the first process's number."""
        if self.world == 1:
            return number
        value = torch.tensor(number)
        distributed.broadcast(value, 0)
        return int(value)

    def wait(self) -> None:
        """Wait until every process has come so far."""
        if self.world > 1:
            distributed.barrier()

    def wrapped(self, student: Student) -> Callable[[Tensor], StudentOutput]:
        """Return how the student is to be run in its training step; its batch norms become those of all processes."""
        if self.world == 1:
            return student
        for place, layer in enumerate(student.layers):
            if isinstance(layer, nn.BatchNorm2d):
                student.layers[place] = GlobalBatchNorm2d.of(layer)
        averaged = _Averaged(student)
        self._averaged.add(averaged)
        return averaged

    def leave(self) -> None:
        """Part from the other processes; what :meth:`wrapped` returned cannot be called any more."""
        for averaged in list(self._averaged):
            averaged.module = None
        gc.collect()  # the wrapper is part of cycles
        # Its end waits for gloo's threads, which may need the GIL for a tensor's last reference. The backend's own
        # handle gives the GIL up meanwhile, the group's does not: the former, fetched first, is to be the last one.
        group: Any = distributed.group.WORLD
        backend = group._get_backend(torch.device("cpu"))
        del group
        distributed.destroy_process_group()
        del backend


class _Averaged:
    """A student whose gradients are averaged over all processes; until they part.

    Whoever holds a DistributedDataParallel holds the process group and with it gloo's threads. One of them that still
    has a tensor of Python's when the interpreter ends aborts the process (pytorch/pytorch#179291): so that leaving
    ends the threads, only this object may hold the wrapper.
    """

    def __init__(self, student: Student) -> None:
        # Buffers are equal already: every process computed them from the same sums.
        self.module: DistributedDataParallel | None = DistributedDataParallel(student, broadcast_buffers=False)

    def __call__(self, images: Tensor) -> StudentOutput:
        if self.module is None:
            raise RuntimeError("the processes have parted: train inside of `with processes()`")
        output: StudentOutput = self.module(images)
        return output


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose statistics in training are those of all processes (torch's SyncBatchNorm needs CUDA)."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
        """Return one with the parameters and buffers of `norm`: the same tensors, under the same names."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, values: Tensor) -> Tensor:
        """Normalise (B, C, H, W); gradients reach the values of all processes."""
        if not self.training:
            normalised: Tensor = super().forward(values)
            return normalised
        axes = [0, 2, 3]
        count = values.numel() // self.num_features * distributed.get_world_size()
        mean = _summed(values.sum(axes)) / count
        centred = values - mean.view(1, -1, 1, 1)
        var = _summed(centred.square().sum(axes)) / count
        self._remember(mean.detach(), var.detach() * count / (count - 1))
        scale = (var + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias.view(1, -1, 1, 1), centred, scale.view(1, -1, 1, 1))

    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _Summed(torch.autograd.Function):
    """The sum over all processes, and of their gradients (importing torch.distributed.nn for it writes files)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(values)  # type: ignore[no-untyped-call]
    return total


@contextlib.contextmanager
def processes(device: str = "cpu", environment: Mapping[str, str] = os.environ) -> Iterator[Parallel]:
    """Join the processes that torchrun started, and leave them at the end; without torchrun, be the only one.

    Raises
    ------
    ConfigError
        If the environment says that there are several processes, but not where they are.
    """
    rank, world = announced(environment)
    if world == 1:
        yield Parallel()
        return
    # What is drawn and agreed upon is on the CPU in any case.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    # Its functions' defaults are the group at the time of its import, which torch 2.14 does when DDP is first made:
    # imported before there is a group, they keep none alive.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        distributed.init_process_group(
            backend, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=PATIENCE)
        )
    except Exception as error:  # whatever a rendezvous fails with
        raise ConfigError(
            "torchrun", f"the {world} processes do not find each other ({error})", "all of them started",
            "start with torchrun, on one machine: torchrun --standalone --nproc-per-node 2 -m stars_deploy build ...",
        ) from error  # fmt: skip
    parallel = Parallel(rank, world)
    try:
        with warnings.catch_warnings():
            # Gradients whose channels are last are copied into DDP's buckets: right, and cheap.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
            # What torch 2.14 offers instead synchronises buffers at the start, and 2.3 does not know it.
            warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated", FutureWarning)
            yield parallel
    finally:
        parallel.leave()


def announced(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return rank and number of the processes, as torchrun tells them; (0, 1) without it.

    Raises
    ------
    ConfigError
        If it tells a part only, or no such numbers.
    """
    if "WORLD_SIZE" not in environment or environment["WORLD_SIZE"] == "1":
        return 0, 1
    missing = [name for name in VARIABLES if name not in environment]
    remedy = "start with torchrun, or unset WORLD_SIZE"
    if missing:
        raise ConfigError("torchrun", f"WORLD_SIZE without {', '.join(missing)}", ", ".join(VARIABLES), remedy)
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError as error:
        raise ConfigError("torchrun", f"RANK or WORLD_SIZE is no number ({error})", "whole numbers", remedy) from error
    if not 0 <= rank < world:
        raise ConfigError("torchrun", f"RANK {rank} of WORLD_SIZE {world}", "0 <= RANK < WORLD_SIZE", remedy)
    return rank, world
