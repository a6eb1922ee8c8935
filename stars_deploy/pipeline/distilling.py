"""The first stage of a build: from a teacher to a student's file, the images it was made with, and its history."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stars_deploy.config import BuildConfig, load_method, resolve_objectives
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.directory import (
    CHECKPOINT,
    HISTORY,
    PREVIEWS,
    STUDENT,
    TENSORBOARD,
    RunDirectory,
    SyntheticImages,
)
from stars_deploy.progress import Observer

# torch is imported where a stage needs it: opening the command line shall not wait for it.
if TYPE_CHECKING:
    from stars_deploy.distill import Distiller
    from stars_deploy.distill.observing import DistillObserver
    from stars_deploy.distill.parallel import Parallel
    from stars_deploy.student import NeuronModel
    from stars_deploy.teacher import Teacher


def distil(
    config: BuildConfig, teacher: Teacher, directory: RunDirectory, watch: Observer, resume: bool, parallel: Parallel
) -> None:
    """Write the student, the history of its losses and the synthetic images; skip what a resumed build has.

    All of `parallel` take part, and the first one writes.
    """
    from stars_deploy.distill.health import advise, lately
    from stars_deploy.student import describe_student, save_student

    if resume and directory.file(STUDENT).is_file():
        watch.noted(f"{STUDENT} is there already: distillation is skipped")
        return
    distiller = make_distiller(config, on_device(teacher, config.device, parallel), parallel)
    checkpoint = directory.file(CHECKPOINT)
    if resume and checkpoint.is_file():
        distiller.restore(checkpoint)
        watch.noted(f"resumed at step {distiller.step} of {config.distill.steps}")
    distiller.run(watch.advanced, checkpoint, _observers(distiller, directory) if parallel.leads else [])
    if not parallel.leads:
        return
    for text in advise(lately(distiller.history)):
        watch.noted(text)
    directory.save_images(_synthetic_images(distiller))
    # Last: a folder with a student has all that distillation leaves.
    distiller.student.cpu()
    plan = describe_student(distiller.student, config.student.spec, teacher.labels, neuron_of(config))
    save_student(distiller.student, plan, directory.file(STUDENT))


def _observers(distiller: Distiller, directory: RunDirectory) -> list[DistillObserver]:
    from stars_deploy.distill.metrics import MetricsFile, TensorBoardLog
    from stars_deploy.distill.preview import PreviewSheets

    observers: list[DistillObserver] = [
        MetricsFile(directory.file(HISTORY), distiller),
        PreviewSheets(directory.file(PREVIEWS)),
    ]
    if distiller.config.distill.tensorboard:
        observers.append(TensorBoardLog(directory.file(TENSORBOARD), distiller))
    return observers


def make_distiller(config: BuildConfig, teacher: Teacher, parallel: Parallel | None = None) -> Distiller:
    """Return the distiller of a configuration, before its first step; `parallel` are the processes that share it.

    Raises
    ------
    ConfigError
        If the configuration asks for something unknown.
    TeacherError
        If the student cannot inherit this teacher.
    """
    import torch

    from stars_deploy.distill import Distiller
    from stars_deploy.distill.parallel import Parallel
    from stars_deploy.student import build_student

    torch.manual_seed(config.seed)
    student, scales = build_student(
        teacher, config.student.spec, config.timesteps, neuron_of(config), config.student.balance
    )
    return Distiller(
        teacher=teacher,
        student=student.to(teacher.device),
        scales=scales,
        config=config,
        parallel=parallel or Parallel(),
    )


def plan_budget(
    config: BuildConfig, teacher: Teacher, directory: RunDirectory, watch: Observer, resume: bool, parallel: Parallel
) -> BuildConfig:
    """Return the configuration with as many steps as its time budget allows on this machine.

    A build that is resumed with the same budget keeps its plan.
    """
    seconds = config.distill.budget
    if seconds is None:
        return config
    if resume and directory.is_build() and directory.config().distill.budget == seconds:
        steps = directory.config().distill.steps
    else:
        from stars_deploy.distill.budget import plan_steps

        distiller = make_distiller(config, on_device(teacher, config.device, parallel), parallel)
        steps = parallel.agree(plan_steps(distiller, seconds))
        watch.noted(f"{steps} steps are planned for a budget of {seconds:g} s")
    return config.model_copy(update={"distill": config.distill.model_copy(update={"steps": steps})})


def on_device(teacher: Teacher, name: str, parallel: Parallel) -> Teacher:
    """Return a teacher where it shall run: itself on the CPU, else a copy; each process on a CUDA device of its own.

    Raises
    ------
    ConfigError
        If torch knows no such device, or this machine has none.
    """
    import torch

    if name == "cpu":
        return teacher
    try:
        if name == "cuda" and parallel.world > 1:
            name = f"cuda:{os.environ.get('LOCAL_RANK', parallel.rank)}"
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises several kinds, some of them AssertionError
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            "--device", f"{name} ({first_line})", "cpu, or a device of this machine, such as cuda"
        ) from error
    return replace(teacher, module=copy.deepcopy(teacher.module).to(device))


def neuron_of(config: BuildConfig) -> NeuronModel:
    """Return the neuron that a configuration describes."""
    from stars_deploy.student import NeuronModel

    asked = config.student
    return NeuronModel(decay=asked.decay, surrogate_width=asked.surrogate_width, surrogate=asked.surrogate)


def objectives_in_force(config: BuildConfig) -> dict[str, Any]:
    """Return what synthesis minimises, each objective with its weight, schedule and options, for the report."""
    from stars_deploy.synthesis.registry import find_backbone

    backbone = find_backbone(config.synthesis.backbone)
    if not backbone.minimizes:
        return {}
    settings = resolve_objectives(backbone.base_weights, load_method(config.method), config.synthesis)
    return {name: setting.model_dump(mode="json") for name, setting in settings.items()}


def _synthetic_images(distiller: Distiller) -> SyntheticImages:
    """Take calibration images from the pool, and make held-out ones that nothing was trained on."""
    import torch

    config = distiller.config
    pool = distiller.pool.images[: len(distiller.pool)]
    # Spread over the pool: its first images are the generator's first attempts.
    kept = torch.linspace(0, len(pool) - 1, min(config.calibration_images, len(pool))).long()
    held_out = distiller.held_out(config.held_out_images)
    teacher = distiller.teacher
    answers = teacher.predict((held_out.float() / 255).to(teacher.device)).cpu().numpy()
    return SyntheticImages(calibration=pool[kept].numpy(), held_out=held_out.numpy(), teacher_classes=answers)
