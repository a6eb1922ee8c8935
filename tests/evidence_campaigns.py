"""A campaign of seconds on the embedded digits, for the tests of the evidence machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from evidence.planning import Campaign, Run, load_campaign  # noqa: E402
from evidence.running import Place  # noqa: E402

from stars_deploy.teacher import DIGITS_WEIGHTS  # noqa: E402

CAMPAIGN: dict[str, Any] = {
    "title": "A test",
    "dataset": "digits",
    "settings": {
        "timesteps": 2,
        "distill": {"steps": 8, "batch": 16, "steps_per_round": 4, "checkpoint_every": 3},
        "synthesis": {"batch": 20},
    },
    "backbones": {
        "fast": {
            "synthesis": {
                "backbone": "fast", "options": {"warmup_steps": 2, "inner_steps": 1, "width": 4, "latent": 8}
            }
        }
    },
    "students": {"vgg": {"student": {"spec": "vgg:4-8"}}},
    "arms": {
        "backbone": {"settings": {"method": "bn"}},
        "stars": {"settings": {"method": "stars"}},
    },
    "seeds": [0, 1],
    "baseline": "backbone",
    "evaluate": "validation",
    "validation_images": 300,
}  # fmt: skip
#: The arms above between the references that show how far they are.
WITH_REFERENCES = {"real": {"kind": "real"}, "noise": {"kind": "noise"}, **CAMPAIGN["arms"]}


def write_campaign(folder: Path, **changes: Any) -> Path:
    """Write the campaign, changed as asked, into a folder, and return its path."""
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({**CAMPAIGN, **changes}, sort_keys=False))
    return path


def small_campaign(folder: Path, **changes: Any) -> Campaign:
    """Return the campaign, changed as asked."""
    return load_campaign(write_campaign(folder, **changes))


def place_in(folder: Path) -> Place:
    """Return where the results of a campaign of the embedded teacher are: in a folder of that one."""
    (folder / "out" / "work").mkdir(parents=True)
    return Place(folder=folder / "out", teacher=DIGITS_WEIGHTS, root=None)


def request_of(place: Place, campaign: Campaign, run: Run) -> Path:
    """Write what a run's process is asked to do, and return the file."""
    request = place.folder / "work" / f"{run.name}.json"
    asked = {
        "run": run.model_dump(mode="json"), "teacher": str(place.teacher), "dataset": campaign.dataset, "root": None,
        "evaluate": campaign.evaluate, "validation_images": campaign.validation_images,
        "result": str(place.result(run.name)),
    }  # fmt: skip
    request.write_text(json.dumps(asked))
    return request
