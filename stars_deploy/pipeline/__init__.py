"""Everything that the command line does, as typed Python calls.

>>> from stars_deploy.pipeline import BuildConfig, build
>>> result = build(BuildConfig(), "runs/first")  # doctest: +SKIP
"""

from stars_deploy.config import BuildConfig, load_config
from stars_deploy.pipeline.building import BuildResult, build
from stars_deploy.pipeline.comparing import compare_models
from stars_deploy.pipeline.exporting import ExportResult, export_model
from stars_deploy.pipeline.models import Reading
from stars_deploy.pipeline.quantising import Importing
from stars_deploy.pipeline.simulating import EngineChoice, Recording, Simulation, simulate_model
from stars_deploy.pipeline.teaching import train
from stars_deploy.pipeline.verifying import verify_model
from stars_deploy.progress import Observer

__all__ = [
    "BuildConfig",
    "BuildResult",
    "EngineChoice",
    "ExportResult",
    "Importing",
    "Observer",
    "Reading",
    "Recording",
    "Simulation",
    "build",
    "compare_models",
    "export_model",
    "load_config",
    "simulate_model",
    "train",
    "verify_model",
]
