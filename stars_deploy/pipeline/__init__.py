"""Everything that the command line does, as typed Python calls.

>>> from stars_deploy.pipeline import BuildConfig, build
>>> result = build(BuildConfig(), "runs/first")  # doctest: +SKIP
"""

from stars_deploy.config import BuildConfig, load_config
from stars_deploy.pipeline.building import BuildResult, build
from stars_deploy.pipeline.exporting import ExportResult, export_model
from stars_deploy.pipeline.measuring import Simulation, compare_models, simulate_model, verify_model
from stars_deploy.pipeline.teaching import train
from stars_deploy.progress import Observer

__all__ = [
    "BuildConfig",
    "BuildResult",
    "ExportResult",
    "Observer",
    "Simulation",
    "build",
    "compare_models",
    "export_model",
    "load_config",
    "simulate_model",
    "train",
    "verify_model",
]
