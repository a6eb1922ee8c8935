"""Everything that a campaign asks for is built once before its first run: what is wrong is said before hours pass."""

from __future__ import annotations

import numpy as np

from evidence.arms import register_all
from evidence.planning import Campaign, plan_runs, settled
from evidence.running import Place
from evidence.worker import prepare
from stars_deploy.data import EvaluationSet, load_dataset
from stars_deploy.errors import DataError, StarsDeployError
from stars_deploy.teacher import load_teacher


def check_campaign(campaign: Campaign, place: Place) -> None:
    """Refuse a campaign that could not be run; the test set is not looked at.

    Raises
    ------
    StarsDeployError
        If a name, a setting, the teacher or the training images are not as they must be.
    """
    register_all()
    teacher = load_teacher(str(place.teacher))
    _check_images(campaign, load_dataset(campaign.dataset, place.root, train=True))
    for run in plan_runs(campaign):
        if run.seed == campaign.seeds[0]:
            try:
                prepare(run, settled(run), teacher)
            except StarsDeployError as error:
                raise type(error)(f"{run.name}: {error.where}", error.got, error.allowed, error.remedy) from error


def _check_images(campaign: Campaign, training: EvaluationSet) -> None:
    kept = campaign.validation_images
    if kept > len(training.labels) // 2:
        raise DataError(
            "validation_images", f"{kept} of {len(training.labels)} training images", "at most half of them"
        )
    missing = len(training.classes) - len(np.unique(training.labels[:kept]))
    if missing:
        raise DataError(
            campaign.dataset, f"the first {kept} training images lack {missing} of the classes",
            "training images in random order", "make an .npz of them, shuffled",
        )  # fmt: skip
