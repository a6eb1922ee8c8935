"""How fast a backbone makes images, and where a distillation spends its time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import measure_runs

from stars_deploy.architectures import build_ann
from stars_deploy.config import load_config
from stars_deploy.distill import Distiller, distiller, mixing
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.teacher import InputFormat, Teacher, load_teacher

#: Backbones whose batch takes so many steps that one round is enough, and a warm-up nothing.
LONG = ("deepinversion", "cmi")


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time a backbone's rounds after its warm-up, or with ``request["shares"]`` the parts of whole rounds."""
    torch.set_num_threads(request["threads"])
    synthesis = {"backbone": request["backbone"], "options": request.get("options", {})}
    student = {"spec": request["student"]}
    settings = {"synthesis": synthesis, "student": student, "timesteps": 4, "seed": request["seed"] % 2**31}
    config = load_config(None, settings)
    run = make_distiller(config, _teacher(request["teacher"]))
    if request["backbone"] not in LONG:
        run.synthesize()  # with the warm-up
    if request.get("shares"):
        return {"shares": _shares(run, request["seconds"])}
    round_ = measure_runs(run.synthesize, 1, request["seconds"], warm_up=0, fewest=1)
    images = run.pool.added // len(run.history)
    speed, cpu = images * round_["samples_per_second"], round_["cpu_seconds_per_sample"] / images
    return {**round_, "samples": images, "samples_per_second": speed, "cpu_seconds_per_sample": cpu}


def _teacher(name: str) -> Teacher:
    if name == "digits":
        return load_teacher()
    torch.manual_seed(0)
    module = build_ann(name, (1, 28, 28), 10)
    for _ in range(5):  # statistics that are not those of a fresh layer
        module.train()(torch.randn(64, 1, 28, 28))
    module.eval().requires_grad_(False)
    norms = tuple(key for key, layer in module.named_modules() if isinstance(layer, torch.nn.BatchNorm2d))
    form = InputFormat(shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
    labels = tuple(str(index) for index in range(10))
    return Teacher(spec=name, module=module, input=form, labels=labels, weights={"sha256": "none"}, norms=norms)


class Stopwatch:
    """Time by part; what runs inside another part counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[list[float]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block for `name`."""
        begun, inner = time.perf_counter(), [0.0]
        self._running.append(inner)
        try:
            yield
        finally:
            self._running.pop()
            spent = time.perf_counter() - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner[0]
            if self._running:
                self._running[-1][0] += spent

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, whose time counts for `name`."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed


def _shares(run: Distiller, seconds: float) -> dict[str, float]:
    """Return the share of time of each part of whole rounds."""
    watch = Stopwatch()
    stage = [""]
    run.source.scorer.forward = watch.around("synthesis: networks and objectives, forward", run.source.scorer.forward)
    original = torch.autograd.backward
    torch.autograd.backward = lambda *given, **named: watch.around(f"{stage[0]}: backward", original)(*given, **named)
    distiller.observe = watch.around("student: teacher, forward", distiller.observe)
    run.trained = watch.around("student: forward", run.trained)
    distiller.mixed = watch.around("student: views", mixing.mixed)
    distiller.randomly_shifted = watch.around("student: views", distiller.randomly_shifted)
    end = time.perf_counter() + max(seconds, 0.1)
    while time.perf_counter() < end:
        stage[0] = "synthesis"
        with watch.part("synthesis: generator, optimiser, rest"):
            run.synthesize()
        stage[0] = "student"
        with watch.part("student: optimiser, pool, rest"):
            for _ in range(run.config.distill.steps_per_round):
                run.advance()
    total = sum(watch.seconds.values())
    return {name: value / total for name, value in sorted(watch.seconds.items())}
