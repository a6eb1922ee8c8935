"""The loop of rounds and steps: synthesise images, let the student follow the teacher on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stars_deploy.config import BuildConfig
from stars_deploy.distill.checkpoint import (
    Parts,
    collect,
    distribute,
    read_checkpoint,
    save_checkpoint,
    unreadable,
)
from stars_deploy.distill.health import HealthWatch
from stars_deploy.distill.losses import check_weights, follow, observe
from stars_deploy.distill.mixing import mixed
from stars_deploy.distill.observing import DistillObserver
from stars_deploy.distill.parallel import Parallel
from stars_deploy.errors import ConfigError
from stars_deploy.student import Student, StudentOutput
from stars_deploy.synthesis.backbone import Backbone
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.registry import build_backbone, view_shift
from stars_deploy.teacher import Teacher
from stars_deploy.views import randomly_shifted

#: Share of the distillation after which no channel is brought back: too few steps are left to learn what it is for.
LAST_REVIVAL = 0.9
#: Beginnings of the names of what each process has of its own.
OWN = ("draws/backbone", "adam-")

Progress = Callable[[int, int, str], None]


@dataclass(kw_only=True)
class Distiller:
    """The state of a distillation, from which it goes on after an interrupt.

    Parameters
    ----------
    teacher : Teacher
    student : Student
    scales : list of float
        Teacher activation for a firing rate of 1, by layer; empty unless the student inherits.
    config : BuildConfig
    backbone : Backbone, optional
        Instead of the configured one.
    parallel : Parallel
        The processes that distil together; by default this one alone.

    Attributes
    ----------
    step : int
        Student steps done.
    history : list of dict
        One entry a round: the last value of each term.
    pool : ImagePool
    seconds : dict
        Wall time of ``synthesis`` and ``student`` in this process [s]; no part of the state.
    """

    teacher: Teacher
    student: Student
    scales: list[float]
    config: BuildConfig
    backbone: Backbone | None = None
    parallel: Parallel = field(default_factory=Parallel)
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"synthesis": 0.0, "student": 0.0})

    def __post_init__(self) -> None:
        check_weights(self.scales, self.config.distill)
        seed = self.config.seed
        synthesis = self.config.synthesis
        self.synthesis_draws = torch.Generator().manual_seed(seed)
        # Apart from the backbone's, so that what the student sees is drawn alike whatever the synthesis.
        self.draws = torch.Generator().manual_seed(seed)
        self.source = self.backbone or build_backbone(self.teacher, synthesis, self.config.method, self.synthesis_draws)
        self.parallel.diversify(self.synthesis_draws, seed)
        self.shift = view_shift(self.teacher, synthesis)
        self.pool = ImagePool(self.teacher.input.shape, synthesis.pool)
        self.trained = self.parallel.wrapped(self.student)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=self.config.distill.learning_rate)
        self.health = HealthWatch(self.student).to(self.teacher.device)

    @property
    def progress(self) -> float:
        """Share of the planned steps that is done."""
        return self.step / self.config.distill.steps

    def run(
        self, progress: Progress, checkpoint: Path | None = None, observers: Sequence[DistillObserver] = ()
    ) -> Student:
        """Distil until the planned number of steps is reached.

        Parameters
        ----------
        progress : callable
            Called with (steps done, steps in all, text).
        checkpoint : path, optional
            Written every ``checkpoint_every`` steps, whole or not at all.
        observers : sequence of DistillObserver
            Told of every finished round, and of the end.

        Returns
        -------
        Student
            In eval mode.

        Raises
        ------
        ConfigError
            If a loss is no longer finite; the last checkpoint stays.
        ArtifactError
            If a checkpoint cannot be written; the one before it stays.
        """
        plan = self.config.distill
        while self.step < plan.steps:
            if self.step % plan.steps_per_round == 0:
                self.synthesize()
            self.advance()
            if self.step % plan.steps_per_round == 0 or self.step == plan.steps:
                progress(self.step, plan.steps, _described(self.history[-1]))
                for observer in observers:
                    observer.round_done(self)
            if checkpoint is not None and self.step % plan.checkpoint_every == 0 and self.step < plan.steps:
                self.save(checkpoint)
        self._freeze()
        for observer in observers:
            observer.finished(self)
        return self.student

    def synthesize(self) -> None:
        """Make the images of a round, and put them into the pool."""
        begun = time.perf_counter()
        self._freeze()
        batch = self.source.synthesize(self.student, self.pool, self.progress)
        self.source.scorer.batch_done()
        self.parallel.average(self.source)
        for images in self.parallel.gather(batch.images):
            self.pool.add(images)
        entry = {"step": float(self.step), "images": float(self.pool.added)}
        entry.update({f"synthesis/{name}": value for name, value in batch.terms.items()})
        if batch.terms and len(self.history) % self.config.distill.inspect_every == 0:
            norms = self.source.scorer.gradient_norms(batch.images, batch.wanted, self.student, self.progress)
            entry.update({f"gradient/{name}": value for name, value in norms.items()})
        self.history.append(entry)
        self.seconds["synthesis"] += time.perf_counter() - begun

    def held_out(self, count: int) -> torch.Tensor:
        """Return `count` fresh images that nothing was trained on, uint8."""
        self._freeze()
        batches: list[torch.Tensor] = []
        while sum(len(batch) for batch in batches) < count:
            batches.append(self.source.synthesize(self.student, self.pool, 1.0).images.cpu())
        return (torch.cat(batches)[:count] * 255).round().to(torch.uint8)

    def advance(self) -> None:
        """Take one step of the student.

        Raises
        ------
        ConfigError
            If the loss or its gradient is no longer finite.
        """
        begun = time.perf_counter()
        plan = self.config.distill
        self._unfreeze()
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        images = self.parallel.own(self._shown())
        with torch.no_grad():
            answer = observe(self.teacher, images)
        output = self.trained(images)
        loss, terms = follow(output, answer, self.scales, plan, self.parallel.mean)
        self._check_finite("loss", self.parallel.mean(loss.detach()))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        # A neuron whose potential is NaN just does not fire: the loss alone would not tell.
        gradients = [parameter.grad for parameter in self.student.parameters() if parameter.grad is not None]
        self._check_finite("gradient", torch.stack([gradient.norm() for gradient in gradients]).norm())
        self.optimizer.step()
        self.step += 1
        means = self.parallel.mean(torch.tensor(list(terms.values())))
        self.history[-1].update(step=float(self.step), **dict(zip(terms, means.tolist(), strict=True)))
        if self.step % plan.steps_per_round == 0:
            self._look_after(output)
        self.seconds["student"] += time.perf_counter() - begun

    def _look_after(self, output: StudentOutput) -> None:
        """Note which channels are dead or saturated, and bring those of a student from scratch back."""
        layers = self.health.look(output, self.parallel.mean)
        for number, layer in enumerate(layers, start=1):
            self.history[-1].update({f"dead/{number}": layer.dead, f"saturated/{number}": layer.saturated})
        # An inherited channel that is silent may be one that the teacher does not use either.
        if self.config.distill.revive and not self.scales and self.progress < LAST_REVIVAL:
            self.history[-1]["revived"] = float(self.health.revive(self.student, self.optimizer))

    def _shown(self) -> torch.Tensor:
        """Draw images of the pool, and show them moved and mixed."""
        plan, synthesis = self.config.distill, self.config.synthesis
        images = self.pool.sample(self.parallel.world * plan.batch, self.draws).to(self.teacher.device)
        return mixed(randomly_shifted(images, self.shift, synthesis.flip, self.draws), plan.mixing, self.draws)

    def _check_finite(self, what: str, value: torch.Tensor) -> None:
        if not math.isfinite(float(value)):
            raise ConfigError(
                "distillation", f"{what} {float(value)} at step {self.step}", f"a finite {what}",
                "lower distill.learning_rate and build anew; the last checkpoint, with finite weights, is kept",
            )  # fmt: skip

    def _freeze(self) -> None:
        self.student.eval().requires_grad_(False)

    def _unfreeze(self) -> None:
        self.student.train().requires_grad_(True)
        if self.scales:
            # Inherited statistics are the teacher's own, from real data: better than ours from synthetic images.
            for norm in self.student.norms():
                norm.eval()

    def save(self, path: Path) -> None:
        """Write everything that :meth:`restore` needs, as tensors (no pickle), whole or not at all.

        Raises
        ------
        ArtifactError
            If the file cannot be written; an older one stays as it was.
        """
        header = {"step": self.step, "added": self.pool.added, "history": self.history, "run": self.fingerprint()}
        tensors = {"pool": self.pool.images[: len(self.pool)], **self.state(), **self._of_other_processes()}
        if self.parallel.leads:
            save_checkpoint(tensors, header, path)
        self.parallel.wait()

    def _of_other_processes(self) -> dict[str, torch.Tensor]:
        """Return what only the other processes know: their random numbers and moments of synthesis."""
        tensors: dict[str, torch.Tensor] = {}
        for name, value in self.state().items():
            if name.startswith(OWN):
                others = self.parallel.gather(value)[1:]
                tensors.update({f"rank{rank}/{name}": other for rank, other in enumerate(others, start=1)})
        return tensors

    def state(self) -> dict[str, torch.Tensor]:
        """Return what changes with every step but the pool, not copied."""
        return collect(self._parts())

    def reset(self, state: Mapping[str, torch.Tensor]) -> None:
        """Start again before the first step, from a state that :meth:`state` returned then."""
        distribute(state, self._parts())
        self.pool.restore(self.pool.images[:0], 0)
        self.step, self.history = 0, []
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same teacher and configuration.

        On one thread the final student has the same bits as that of a run without interrupt.

        Raises
        ------
        ArtifactError
            If the checkpoint is missing or damaged, or belongs to another run.
        """
        tensors, header = read_checkpoint(path, self.fingerprint())
        try:
            own = {name: tensors.get(f"rank{self.parallel.rank}/{name}", value) for name, value in tensors.items()}
            distribute(own, self._parts())
            self.pool.restore(tensors["pool"], int(header["added"]))
            self.step, self.history = int(header["step"]), list(header["history"])
        except Exception as error:  # whatever torch says to states that do not fit
            raise unreadable(path, error) from error

    def _parts(self) -> Parts:
        optimizers: dict[str, torch.optim.Optimizer] = {"adam": self.optimizer}
        optimizers.update({f"adam-{name}": one for name, one in self.source.optimizers().items()})
        return Parts(
            modules={"student": self.student, "backbone": self.source, "health": self.health},
            optimizers=optimizers,
            generators={"student": self.draws, "backbone": self.synthesis_draws},
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to be continued."""
        depends_on = {"student", "synthesis", "distill", "timesteps", "seed"}
        settings = self.config.model_dump(mode="json", include=depends_on)
        for free in ("checkpoint_every", "budget", "tensorboard"):  # change nothing in the student
            settings["distill"].pop(free)
        settings["synthesis"]["objectives"] = {
            name: setting.model_dump(mode="json") for name, setting in self.source.scorer.settings.items()
        }
        form = self.teacher.input
        expects = [list(form.shape), list(form.mean), list(form.std)]
        teacher = {"spec": self.teacher.spec, "sha256": self.teacher.weights["sha256"], "input": expects}
        return {"teacher": teacher, "processes": self.parallel.world, **settings}


def _described(entry: Mapping[str, float]) -> str:
    return f"kl {entry.get('kl', math.nan):.3f}" + (f", rates {entry['rates']:.3f}" if "rates" in entry else "")
