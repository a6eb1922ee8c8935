"""One run in a process of its own: ``python -m evidence.worker REQUEST.json``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processes import end_with_parent

from evidence.arms import as_ann, objectives_of, register_all
from evidence.mechanism import diagnose, gradient_ratios
from evidence.planning import Run, settled
from evidence.sources import sources
from stars_deploy.artifacts import write_json
from stars_deploy.config import BuildConfig
from stars_deploy.data import EvaluationSet, load_dataset
from stars_deploy.distill import Distiller
from stars_deploy.distill.preview import PreviewSheets
from stars_deploy.errors import ArtifactError
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.pipeline.runtime import prepare_torch
from stars_deploy.provenance import versions
from stars_deploy.sweep.content import content_key
from stars_deploy.teacher import Teacher, load_teacher

#: Real training images that the diagnosis looks at.
DIAGNOSED = 1000


def main(request: Path) -> None:
    """Do the run that a request describes, and write its result."""
    # Of what is imported now: the checkout may be edited while this runs.
    asked = {**json.loads(request.read_text(encoding="utf-8")), "sources": sources()}
    run = Run.model_validate(asked["run"])
    prepare_torch(1)
    register_all()
    teacher = load_teacher(asked["teacher"])
    config = settled(run)
    checkpoint = checkpoint_of(request, asked)
    distiller = resumed(lambda: prepare(run, config, teacher), checkpoint)
    if run.kind == "real":
        training = load_dataset(asked["dataset"], asked["root"], train=True)
        distiller.source.images = torch.from_numpy(training.images[asked["validation_images"] :])
    resumed_at = distiller.step
    began, cpu = time.perf_counter(), time.process_time()
    if run.kind == "none":
        distiller.student.eval()
    else:
        folder = request.parent / "previews" / run.name
        distiller.run(lambda *_: None, checkpoint, [PreviewSheets(folder)] if run.kind == "distill" else [])
    spent = {
        "wall": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        **distiller.seconds,
        # All these are of the process that finished: of a run that was interrupted, from this step on.
        "resumed_at": resumed_at,
    }
    write_json(Path(asked["result"]), describe(asked, run, config, distiller, spent))
    checkpoint.unlink(missing_ok=True)


def checkpoint_of(request: Path, asked: dict[str, Any]) -> Path:
    """Return where a run's checkpoint is: one of the same sources and images; any other is removed."""
    depends_on = [asked[key] for key in ("sources", "dataset", "root", "evaluate", "validation_images")]
    name = f"{request.stem}-{content_key(depends_on)[:16]}.safetensors"
    for other in request.parent.glob(f"{request.stem}-{'[0-9a-f]' * 16}.safetensors"):
        if other.name != name:
            other.unlink()
    return request.with_name(name)


def resumed(make: Callable[[], Distiller], checkpoint: Path) -> Distiller:
    """Return a distiller that goes on from a checkpoint, if there is one that belongs to it; else at its start."""
    distiller = make()
    if checkpoint.exists():
        try:
            distiller.restore(checkpoint)
        except ArtifactError as error:
            print(f"begun anew: {error}", file=sys.stderr)
            return make()
    return distiller


def prepare(run: Run, config: BuildConfig, teacher: Teacher) -> Distiller:
    """Return the distiller of a run, with the student that it asks for."""
    distiller = make_distiller(config, teacher)
    if run.kind != "ann":
        return distiller
    return Distiller(teacher=teacher, student=as_ann(distiller.student), scales=[], config=config)


def describe(
    asked: dict[str, Any], run: Run, config: BuildConfig, distiller: Distiller, spent: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that is known of a finished run; the evaluation set is read here, once."""
    teacher, student = distiller.teacher, distiller.student
    training = load_dataset(asked["dataset"], asked["root"], train=True)
    kept = asked["validation_images"]
    tested = asked["evaluate"] == "test"
    held = load_dataset(asked["dataset"], asked["root"]) if tested else training.first(kept)
    synthetic = distiller.pool.newest(DIAGNOSED).float() / 255 if run.kind in ("distill", "ann", "noise") else None
    real = torch.from_numpy(training.images[kept : kept + DIAGNOSED])
    return {
        "arm": run.arm, "kind": run.kind, "backbone": run.backbone, "student": run.student, "seed": run.seed,
        "accuracy": accuracy(student, held), "samples": len(held.labels), "evaluated_on": asked["evaluate"],
        "dataset": asked["dataset"],
        "teacher": {"spec": teacher.spec, **teacher.weights},
        "config": config.model_dump(mode="json", include={"student", "method", "synthesis", "distill", "timesteps"}),
        "objectives": objectives_of(run),
        "steps": distiller.step, "images": distiller.pool.added,
        "seconds": {name: round(value, 3) if isinstance(value, float) else value for name, value in spent.items()},
        "mechanism": {
            **diagnose(teacher, student, real, synthetic), "gradient_ratios": gradient_ratios(distiller.history)
        },
        "last_round": distiller.history[-1] if distiller.history else {},
        "sources": asked["sources"], "versions": versions(),
        "note": "RCA and TAR reconstructed from the abstract; the formulas are ours",
    }  # fmt: skip


def accuracy(student: Any, data: EvaluationSet, batch: int = 500) -> float:
    """Return the share of right answers."""
    with torch.no_grad():
        parts = [student(part).mean_logits().argmax(1) for part in torch.from_numpy(data.images).split(batch)]
    return float((torch.cat(parts) == torch.from_numpy(data.labels)).double().mean())


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]))
