"""A report for tests of the page: made by the code that makes reports, of a small random network."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

import numpy as np

from stars_deploy.activity import measure_activity
from stars_deploy.baseline import AnnLayer, AnnReference
from stars_deploy.comparison import make_row, mark_pareto, tabulate_rows
from stars_deploy.cost import estimate_cost, single_step_tier, summarize_cost
from stars_deploy.hardware import load_profile
from stars_deploy.page import PageContent, Raster
from stars_deploy.page.content import SyntheticSheet
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.targets.reference import run_reference

ANN = AnnReference(
    layers=(AnnLayer(name="one", macs=5000, weights=300, inputs=64, outputs=128, zero_share=0.4, reads_image=True),)
)


def make_graph():
    rng = np.random.default_rng(5)
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(1, 8, 8)),
        populations=(
            Population(name="conv", shape=(4, 8, 8), decay_v=300, vth=900, bias=np.zeros((4, 8, 8), int)),
            Population(name="out", shape=(3,), bias=np.zeros(3, int)),
        ),
        projections=(
            ConvProjection(
                name="p", source="image", target="conv", padding=(1, 1), weight=rng.integers(-9, 10, (4, 1, 3, 3))
            ),
            DenseProjection(name="q", source="conv", target="out", weight=rng.integers(-9, 10, (3, 256))),
        ),
        timesteps=4,
    )


@functools.cache
def _made():
    graph, profile = make_graph(), load_profile("loihi2")
    images = np.random.default_rng(1).integers(0, 256, (12, 1, 8, 8))
    labels = run_reference(graph, images).classes()
    activity = measure_activity(graph, images, labels)
    single = graph.with_timesteps(1)
    beside = single_step_tier(single, measure_activity(single, images, labels), profile)
    cost = estimate_cost(graph, activity, profile, teacher=ANN, same_chip=beside)
    settings = [graph.with_timesteps(steps) for steps in (1, 2, 4)]
    rows = mark_pareto(
        [make_row(one, measure_activity(one, images, labels), profile, model="tiny", teacher=ANN) for one in settings]
    )
    report = {
        "schema": 2,
        "teacher": {"spec": "vgg:4", "labels": ["a", "b", "c"], "file": "t.safetensors", "sha256": "0" * 64},
        "student": {
            "spec": "inherit", "timesteps": 4, "method": "stars",
            "notes": ["RCA and TAR are reconstructed from the abstract of STARS: the formulas are ours."],
        },
        "accuracy": {"teacher": 0.99, "student": 0.97, "quantized": activity.evaluation.accuracy, "targets": {}},
        "evaluation": {"data": "noise", "samples": 12},
        "fidelity": {"student": 0.98, "quantized": 0.96, "samples": 64},
        "verification": {
            "netx": {
                "ran": True, "passed": True, "reason": None, "samples": 16, "compared_spikes": 4096, "mismatches": 0,
                "seconds": 0.25,
            },
            "lava": {
                "ran": False, "passed": None, "reason": "Python 3.11", "samples": 0, "compared_spikes": 0,
                "mismatches": 0, "seconds": 0.0,
            },
        },
        "quantization": {
            "weight_bits": 8, "input_bits": 8, "warnings": [],
            "layers": [
                {
                    "name": name, "scale": 12.5, "clipped": 0.0, "weight_error": 0.01, "current_error": 0.02,
                    "rate": 0.1, "quantized_rate": 0.11, "accumulator_utilization": 0.5,
                }
                for name in ("conv", "out")
            ],
        },
        **summarize_cost(graph, activity.evaluation, cost),
        "sweep": {"rows": tabulate_rows(rows), "reason": None},
        "provenance": {
            "seed": 0, "created": "2026-11-25T00:00:00+00:00", "seconds": {"distil": 1.5},
            "versions": {"stars-deploy": "0.1.0", "python": "3.10"},
        },
    }  # fmt: skip
    return json.dumps(report, default=asdict)


def make_report():
    """A report as it is read back from its file; a new one each time."""
    return json.loads(_made())


def content_of(report):
    """A page of `report` with a raster and images."""
    rng = np.random.default_rng(3)
    return PageContent(
        title="tiny",
        report=report,
        raster=Raster(
            spikes={"conv": rng.random((4, 40)) < 0.3, "out": np.zeros((4, 3), bool)},
            neurons={"conv": 256, "out": 3}, sample="first image", predicted="a", label="b",
        ),
        synthetic=SyntheticSheet(images=rng.integers(0, 256, (5, 1, 8, 8)).astype(np.uint8), classes=tuple("abcab")),
    )  # fmt: skip
