"""Training and storing a teacher on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stars_deploy.data import load_dataset
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.runtime import prepare_torch
from stars_deploy.progress import Observer


def train(
    dataset: str,
    arch: str,
    out: str | Path,
    *,
    root: str | None = None,
    epochs: int = 15,
    flip: bool = False,
    shift: int = 2,
    seed: int = 0,
    threads: int | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train a built-in topology on the training part of a data set, and measure it once on the test part.

    Parameters
    ----------
    dataset, root : str
        See :func:`stars_deploy.data.load_dataset`.
    arch : str
        Such as ``vgg:16-32-64``.
    out : path
        The ``.safetensors`` to write; it says all that ``--teacher`` needs.
    epochs, flip, shift
        See :class:`stars_deploy.training.TrainingPlan`.
    seed, threads : int
    observer : Observer, optional

    Returns
    -------
    dict
        Description stored beside the weights, with the accuracy.
    """
    import torch

    from stars_deploy.teacher import load_teacher, save_teacher
    from stars_deploy.training import TrainingPlan, train_teacher

    watch = observer or Observer()
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ConfigError("--out", path, "a file .safetensors")
    prepare_torch(threads)
    data = load_dataset(dataset, root, train=True)
    test = load_dataset(dataset, root)
    plan = TrainingPlan(epochs=epochs, flip=flip, shift=shift)
    with watch.stage("train"):
        module, description = train_teacher(arch, data, plan, seed, watch.advanced)
    description.update(dataset=data.name, epochs=epochs, flip=flip, shift=shift, seed=seed)
    save_teacher(module, path, description)
    with watch.stage("test"):
        teacher = load_teacher(str(path))
        classes = teacher.predict(torch.from_numpy(test.images)).numpy()
    accuracy = float((classes == test.labels).mean())
    return {**description, "file": str(path), "test_accuracy": accuracy, "test_samples": len(test.labels)}
