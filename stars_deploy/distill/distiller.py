"""Data-free distillation: synthesise images from the teacher, and let the student follow it on them.

The distiller is handed a teacher, never a data set, and may not import :mod:`stars_deploy.data`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.config import BuildConfig, DistillConfig
from stars_deploy.errors import ArtifactError, ConfigError, FormatError
from stars_deploy.norms import watched_norms
from stars_deploy.student import Student, StudentOutput
from stars_deploy.synthesis.backbone import FastBackbone
from stars_deploy.synthesis.generator import ImagePool
from stars_deploy.teacher import Teacher
from stars_deploy.views import randomly_shifted
from stars_deploy.weights import read_tensors, write_tensors

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
    """

    teacher: Teacher
    student: Student
    scales: list[float]
    config: BuildConfig
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.config.distill
        seed = self.config.seed
        self.backbone = FastBackbone(self.teacher, self.config.synthesis, self.config.objectives(), seed)
        self.pool = ImagePool(self.teacher.input.shape, self.config.synthesis.pool)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=plan.learning_rate)
        # Apart from the backbone's, so that what the student sees is drawn alike whatever the synthesis.
        self.draws = torch.Generator().manual_seed(seed)

    def run(self, progress: Progress, checkpoint: Path | None = None) -> Student:
        """Distil until the planned number of steps is reached.

        Parameters
        ----------
        progress : callable
            Called with (steps done, steps in all, text).
        checkpoint : path, optional
            Written every ``checkpoint_every`` steps, whole or not at all.

        Returns
        -------
        Student
            In eval mode.

        Raises
        ------
        ConfigError
            If the loss is no longer finite.
        ArtifactError
            If a checkpoint cannot be written; the one before it stays.
        """
        plan = self.config.distill
        while self.step < plan.steps:
            if self.step % plan.steps_per_round == 0:
                self._synthesize()
            self._advance()
            if self.step % 10 == 0 or self.step == plan.steps:
                progress(self.step, plan.steps, _described(self.history[-1]))
            if checkpoint is not None and self.step % plan.checkpoint_every == 0 and self.step < plan.steps:
                self.save(checkpoint)
        self._freeze()
        return self.student

    def _synthesize(self) -> None:
        self._freeze()
        warm = self.config.synthesis.warmup_steps if self.step == 0 else None
        batch = self.backbone.synthesize(self.student, warm)
        self.pool.add(batch.images)
        self.history.append({"step": float(self.step), **{f"synthesis/{k}": v for k, v in batch.terms.items()}})

    def _freeze(self) -> None:
        self.student.eval().requires_grad_(False)

    def _unfreeze(self) -> None:
        self.student.train().requires_grad_(True)
        if self.scales:
            # Inherited statistics are the teacher's own, from real data: better than ours from synthetic images.
            for norm in self.student.norms():
                norm.eval()

    def _advance(self) -> None:
        plan = self.config.distill
        self._unfreeze()
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / plan.steps)))
        images = self.pool.sample(plan.batch, self.draws)
        images = randomly_shifted(images, self.backbone.shift, self.config.synthesis.flip, self.draws)
        with torch.no_grad():
            logits, activations = observe(self.teacher, images)
        loss, terms = follow(self.student(images), logits, activations, self.scales, plan)
        if not math.isfinite(float(loss.detach())):
            raise ConfigError(
                "distillation", f"loss {float(loss.detach())} at step {self.step}", "a finite loss",
                "lower distill.learning_rate, then continue with --resume from the last checkpoint",
            )  # fmt: skip
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.step += 1
        self.history[-1].update(step=float(self.step), **terms)

    def save(self, path: Path) -> None:
        """Write everything that :meth:`restore` needs, as tensors (no pickle), whole or not at all.

        Raises
        ------
        ArtifactError
            If the file cannot be written; an older one stays as it was.
        """
        tensors: dict[str, Tensor] = {"pool": self.pool.images[: len(self.pool)]}
        tensors.update({f"draws/{name}": generator.get_state() for name, generator in self._generators().items()})
        for prefix, module in self._modules().items():
            tensors.update({f"{prefix}/{name}": value for name, value in module.state_dict().items()})
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors.update({f"adam/{index}/{name}": torch.as_tensor(value) for name, value in state.items()})
        header = {"step": self.step, "added": self.pool.added, "history": self.history, "run": self._fingerprint()}
        write_tensors(tensors, {"distiller": header}, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same teacher and configuration.

        On one thread the final student has the same bits as that of a run without interrupt.

        Raises
        ------
        ArtifactError
            If the checkpoint is missing or damaged, or belongs to another run.
        """
        try:
            tensors, description = read_tensors(path)
            header = description["distiller"]
            fingerprint = header["run"]
        except (FormatError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
        if fingerprint != self._fingerprint():
            raise ArtifactError(
                str(path), "belongs to a run with other settings, another teacher or seed",
                "the settings it was started with", "resume with the same options, or build without --resume",
            )  # fmt: skip
        try:
            self._load(header, tensors)
        except Exception as error:  # whatever torch says to states that do not fit
            raise _unreadable(path, error) from error

    def _load(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for prefix, module in self._modules().items():
            module.load_state_dict(_under(f"{prefix}/", tensors))
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("adam/", tensors).items():
            index, _, key = name.partition("/")
            adam.setdefault(int(index), {})[key] = value
        if int(header["step"]):
            _check_moments(adam, list(self.student.parameters()))
        self.optimizer.load_state_dict({"state": adam, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.pool.restore(tensors["pool"], int(header["added"]))
        for name, generator in self._generators().items():
            generator.set_state(tensors[f"draws/{name}"])
        self.step, self.history = int(header["step"]), list(header["history"])

    def _modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "generator": self.backbone.generator}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"student": self.draws, "backbone": self.backbone.draws}

    def _fingerprint(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to be continued."""
        depends_on = {"student", "synthesis", "distill", "timesteps", "seed"}
        settings = self.config.model_dump(mode="json", include=depends_on)
        settings["distill"].pop("checkpoint_every")
        settings["synthesis"]["objectives"] = self.config.objectives().model_dump(mode="json")
        form = self.teacher.input
        expects = [list(form.shape), list(form.mean), list(form.std)]
        teacher = {"spec": self.teacher.spec, "sha256": self.teacher.weights["sha256"], "input": expects}
        return {"teacher": teacher, **settings}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_moments(adam: Mapping[int, Mapping[str, Tensor]], parameters: list[Tensor]) -> None:
    """Refuse a state of Adam that torch would take and fail on at the next step."""
    for index, parameter in enumerate(parameters):
        state = adam.get(index, {})
        if state.keys() != {"step", "exp_avg", "exp_avg_sq"} or any(
            state[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")
        ):
            raise ValueError(f"the optimiser's state of parameter {index} is not of this student")


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return ArtifactError(str(path), f"not a readable checkpoint ({first_line})", remedy="build again without --resume")


def observe(teacher: Teacher, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return a teacher's logits, and what its batch norms pass on after rectification, in order of execution."""
    with watched_norms(teacher.module, activations=True) as seen:
        logits = teacher.logits(images)
    return logits, list(seen.activations.values())


def follow(
    output: StudentOutput, logits: Tensor, activations: list[Tensor], scales: list[float], plan: DistillConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a student, and its terms.

    ``KL(teacher || mean over time) + per_timestep * mean over time KL(teacher || timestep)`` at a temperature
    (Hinton et al. 2015, times its square), and where `scales` are given ``rate_matching * mean over layers of
    ||scale rate - activation||^2 / ||activation||^2`` (ours).
    """
    steps = len(output.logits)
    terms = {"kl": _divergence(logits, output.mean_logits(), plan.temperature)}
    if plan.per_timestep:
        each = _divergence(logits.repeat(steps, 1), output.logits.flatten(0, 1), plan.temperature)
        terms["kl_per_timestep"] = plan.per_timestep * each
    if scales and plan.rate_matching:
        distances = [
            (scale * rate - wanted).square().mean() / wanted.square().mean().clamp_min(1e-6)
            for scale, rate, wanted in zip(scales, output.rates(), activations, strict=True)
        ]
        terms["rates"] = plan.rate_matching * torch.stack(distances).mean()
    loss = torch.stack(list(terms.values())).sum()
    return loss, {name: float(term.detach()) for name, term in terms.items()}


def _divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    return temperature**2 * functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )


def _described(entry: Mapping[str, float]) -> str:
    return f"kl {entry.get('kl', math.nan):.3f}" + (f", rates {entry['rates']:.3f}" if "rates" in entry else "")
