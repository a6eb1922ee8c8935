"""The main job: distil, quantise, write, verify, simulate, report."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stars_deploy.activity import Activity, measure_activity
from stars_deploy.baseline import AnnReference, Tier
from stars_deploy.config import BuildConfig
from stars_deploy.cost import estimate_cost
from stars_deploy.data import EvaluationSet, load_dataset
from stars_deploy.engines import Engine, fast_engine
from stars_deploy.errors import QuantizationError
from stars_deploy.export.calibration import Calibration
from stars_deploy.hardware import ChipProfile, load_profile
from stars_deploy.hardware.mapping import check_mapped, map_network
from stars_deploy.lowering.passes import canonicalize
from stars_deploy.pipeline.beside import single_step_beside, sweep_beside
from stars_deploy.pipeline.checking import plan_student
from stars_deploy.pipeline.directory import (
    FLOAT_GRAPH,
    MODEL,
    STUDENT,
    RunDirectory,
    as_pixels,
)
from stars_deploy.pipeline.distilling import distil, make_distiller, objectives_in_force, plan_budget
from stars_deploy.pipeline.measuring import TeacherMeasurement, measure_teacher
from stars_deploy.pipeline.models import Model, check_fit, quantize_calibrated
from stars_deploy.pipeline.reporting import write_report_page
from stars_deploy.pipeline.runtime import prepare_torch
from stars_deploy.pipeline.samples import distinct_samples
from stars_deploy.pipeline.verifying import verify_targets, write_targets
from stars_deploy.progress import Observer
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.report import compose_report
from stars_deploy.serde import load_quantized, load_spiking, save_graph
from stars_deploy.simulate import run_evaluation
from stars_deploy.targets import find_target
from stars_deploy.verification import check_verified

# torch is imported where a stage needs it: opening the command line, or simulating a file, shall not wait for it.
if TYPE_CHECKING:
    from stars_deploy.distill.parallel import Parallel
    from stars_deploy.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A finished build: its folder and its report (the content of ``report.json``)."""

    directory: Path
    report: dict[str, Any]


def build(
    config: BuildConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> BuildResult:
    """Distil a teacher into a spiking student, quantise it, write it for each target, verify and simulate it.

    Parameters
    ----------
    config : BuildConfig
    out : path
        The run directory (see :mod:`stars_deploy.pipeline.directory`).
    resume : bool
        Go on with an interrupted build of the same settings.
    overwrite : bool
        Replace a build of other settings.
    observer : Observer, optional
        Told of every stage.

    Returns
    -------
    BuildResult

    Under torchrun all processes distil together, and the first one does the rest.

    Raises
    ------
    StarsDeployError
        Wrong input of any kind, before anything is half-written.
    SystemExit
        In every process of torchrun but the first, when its part is done.
    VerificationError
        If a target differs from the integer reference in any spike; the artefacts stay for inspection, without a
        report or manifest.
    """
    watch = observer or Observer()
    for name in config.targets:
        find_target(name)
    profile = load_profile(config.hardware)
    directory = RunDirectory(Path(out))
    with _processes(config) as parallel:
        if not parallel.leads:
            watch = Observer()
        with watch.stage("teacher"):
            teacher = _teacher(config)
            _check_data(config, teacher)  # a wrong path shall not cost a distillation
            _check_fits(config, teacher, profile)
            make_distiller(config, teacher, parallel)  # what it refuses shall be refused before the folder is begun
            config = plan_budget(config, teacher, directory, watch, resume, parallel)
        if parallel.leads:
            directory.start(config, resume=resume, overwrite=overwrite)
        parallel.wait()
        with watch.stage("distil"):
            distil(config, teacher, directory, watch, resume, parallel)
    if not parallel.leads:
        raise SystemExit(0)
    report = _deploy(config, teacher, profile, directory, watch)
    return BuildResult(directory=directory.path, report=report)


def _deploy(
    config: BuildConfig, teacher: Teacher, profile: ChipProfile, directory: RunDirectory, watch: Observer
) -> dict[str, Any]:
    """Turn the folder's student into verified artefacts and a report."""
    directory.unseal()
    with watch.stage("quantise"):
        calibration = _quantise(config, directory)
        for warning in calibration.warnings:
            watch.noted(warning)
    graph = load_quantized(directory.file(MODEL))
    with watch.stage("write"):
        origin = load_spiking(directory.file(FLOAT_GRAPH))
        write_targets(graph, directory.path, config.targets, origin=origin, onnx=config.onnx)
    model = Model(name=directory.path.name, file=directory.file(MODEL), graph=graph, directory=directory)
    data = _evaluation_set(config)
    samples = distinct_samples(model, data, config.verify_samples)
    with watch.stage("verify"):
        verifications = verify_targets(graph, directory.path, config.targets, samples, watch)
    check_verified(verifications)
    with watch.stage("simulate"):
        measured = _measure(directory, graph, teacher, data, fast_engine(config.threads), watch)
    with watch.stage("measure"):
        beside = _measure_beside(config, teacher, directory, data, watch)
    report = compose_report(
        config=config,
        objectives=objectives_in_force(config),
        graph=graph,
        teacher={"spec": teacher.spec, "labels": list(teacher.labels), **teacher.weights},
        accuracy=measured.accuracy,
        sample_labels=samples.labels,
        sample_source=samples.source,
        fidelity=measured.fidelity,
        verifications=verifications,
        evaluation=measured.activity.evaluation,
        evaluated_on=None if data is None else data.name,
        cost=estimate_cost(
            graph,
            measured.activity,
            profile,
            teacher=_reference(beside, measured.accuracy["teacher"]),
            same_chip=_single_step(directory, model, data, profile),
        ),
        calibration=calibration,
        seconds=watch.seconds,
    )
    directory.write_report(report)
    with watch.stage("compare"):
        directory.write_report({**report, "sweep": sweep_beside(directory, config)})
    with watch.stage("page"):
        write_report_page(directory.path, data=data)
    return directory.report()


@dataclass(frozen=True, kw_only=True)
class _Measured:
    activity: Activity
    accuracy: dict[str, float | None]
    fidelity: dict[str, Any]


def _measure(
    directory: RunDirectory,
    graph: QuantizedGraph,
    teacher: Teacher,
    data: EvaluationSet | None,
    engine: Engine,
    watch: Observer,
) -> _Measured:
    """Run teacher, student and integers over the evaluation set, and the last two over held-out synthetic images."""

    def progress(done: int, of: int) -> None:
        watch.advanced(done, of)

    accuracy: dict[str, float | None] = {"teacher": None, "student": None}
    if data is None:
        activity = measure_activity(graph, as_pixels(directory.images().held_out), engine=engine, progress=progress)
    else:
        activity = measure_activity(graph, data.images, data.labels, engine=engine, progress=progress)
        accuracy["teacher"] = _share(teacher.predict(_tensor(data.images)).numpy(), data.labels)
        accuracy["student"] = _share(_student_classes(directory, data.images), data.labels)
    accuracy["quantized"] = activity.evaluation.accuracy
    return _Measured(activity=activity, accuracy=accuracy, fidelity=_fidelity(directory, graph))


def _processes(config: BuildConfig) -> contextlib.AbstractContextManager[Parallel]:
    from stars_deploy.distill.parallel import processes

    return processes(config.device)


def _teacher(config: BuildConfig) -> Teacher:
    from stars_deploy.teacher import load_teacher

    prepare_torch(config.threads)
    asked = config.teacher
    return load_teacher(
        asked.spec,
        asked.weights,
        input_shape=asked.input_shape,
        mean=asked.mean,
        std=asked.std,
        classes=asked.classes,
        trust_weights=asked.trust_weights,
    )


def _evaluation_set(config: BuildConfig) -> EvaluationSet | None:
    if config.data.name is None:
        return None
    return load_dataset(config.data.name, config.data.root).first(config.data.limit)


def _check_data(config: BuildConfig, teacher: Teacher) -> None:
    data = _evaluation_set(config)
    if data is not None:
        check_fit(data, teacher.input.shape, teacher.classes)


def _check_fits(config: BuildConfig, teacher: Teacher, profile: ChipProfile) -> None:
    """Refuse a student that the chip cannot hold before it is distilled.

    What rounds to more than 24 bits on noise may still fit when it is trained and calibrated.
    """
    with contextlib.suppress(QuantizationError):
        check_mapped(map_network(plan_student(teacher, config), profile))


def _quantise(config: BuildConfig, directory: RunDirectory) -> Calibration:
    from stars_deploy.export.trace import trace_student
    from stars_deploy.student import load_student

    student, plan = load_student(directory.file(STUDENT))
    save_graph(canonicalize(trace_student(student, plan.labels)), directory.file(FLOAT_GRAPH))
    floats = load_spiking(directory.file(FLOAT_GRAPH))
    images = as_pixels(directory.images().calibration)
    graph, calibration = quantize_calibrated(floats, images, config.bits, config.input_bits)
    save_graph(graph, directory.file(MODEL))
    return calibration


def _student_classes(directory: RunDirectory, images: npt.NDArray[Any], batch: int = 256) -> npt.NDArray[np.int64]:
    import torch

    from stars_deploy.student import load_student

    student, _ = load_student(directory.file(STUDENT))
    with torch.no_grad():
        parts = [student(part).mean_logits().argmax(1) for part in _tensor(images).split(batch)]
    classes: npt.NDArray[np.int64] = torch.cat(parts).numpy()
    return classes


def _fidelity(directory: RunDirectory, graph: QuantizedGraph) -> dict[str, Any]:
    """Agreement with the teacher on synthetic images that nothing was trained on."""
    images = directory.images()
    pixels = as_pixels(images.held_out)
    return {
        "student": _share(_student_classes(directory, pixels), images.teacher_classes),
        "quantized": run_evaluation(graph, pixels, images.teacher_classes).accuracy,
        "samples": len(pixels),
        "measured_on": "held-out synthetic images, agreement with the teacher's answer",
    }


def _reference(beside: TeacherMeasurement, accuracy: float | None) -> AnnReference | None:
    """Return the teacher as the ANN beside its student; None where all its layers are of kinds that nobody counts."""
    return AnnReference(layers=beside.layers, accuracy=accuracy, measured=beside.cpu) if beside.layers else None


def _single_step(directory: RunDirectory, model: Model, data: EvaluationSet | None, profile: ChipProfile) -> Tier:
    if data is not None:
        return single_step_beside(model, data.images, data.labels, profile)
    synthetic = directory.images()
    return single_step_beside(
        model, as_pixels(synthetic.held_out), None, profile, teacher_classes=synthetic.teacher_classes
    )


def _measure_beside(
    config: BuildConfig, teacher: Teacher, directory: RunDirectory, data: EvaluationSet | None, watch: Observer
) -> TeacherMeasurement:
    """Measure the teacher on what the network was run on."""
    images = as_pixels(directory.images().held_out) if data is None else data.images
    beside = measure_teacher(teacher, images, on_cpu=config.measure_cpu)
    if config.measure_cpu and beside.cpu.reason:
        watch.noted(f"the teacher is not measured on this processor: {beside.cpu.reason}")
    return beside


def _share(classes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    return float((classes == labels).mean())


def _tensor(images: npt.NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
