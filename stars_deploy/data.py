"""Evaluation sets: real images, used to measure and to train teachers, never to distil.

The distiller may not import this module (import-linter checks it).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import DataError, StarsDeployError

#: Names that the command line takes, with the torchvision class behind each.
TORCHVISION_SETS: Mapping[str, str] = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
_ALLOWED = f"digits, {', '.join(TORCHVISION_SETS)}, folder (an ImageFolder at --root), or a file .npz"

#: Every fifth image of scikit-learn's digits is for testing: a fixed split, about 20 %.
DIGITS_TEST_EVERY = 5
#: Most classes that an ``.npz`` may name by its largest label (ImageNet-21k has 21 841).
MOST_CLASSES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Labelled images.

    Parameters
    ----------
    name : str
    images : array of float32, (N, C, H, W)
        Pixel values in [0, 1].
    labels : array of int64, (N,)
    classes : tuple of str
        Class names, in label order.
    """

    name: str
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise DataError(
                self.name,
                f"images {self.images.shape}, labels {self.labels.shape}",
                "images (N, C, H, W) and one label each",
            )
        if not self.images.size:
            raise DataError(self.name, "no images", "at least one image")
        if not np.isfinite(self.images).all() or self.images.min() < 0 or self.images.max() > 1:
            raise DataError(self.name, "pixels outside [0, 1], NaN or infinite", "floats in [0, 1] or uint8")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DataError(
                self.name,
                f"labels from {self.labels.min()} to {self.labels.max()}",
                f"0 to {len(self.classes) - 1}",
            )

    def first(self, count: int | None) -> EvaluationSet:
        """Return the first `count` images (all of them for None)."""
        if count is not None and count < 1:
            raise DataError(self.name, f"{count} images asked for", "at least 1")
        return EvaluationSet(
            name=self.name, images=self.images[:count], labels=self.labels[:count], classes=self.classes
        )


def load_dataset(name: str, root: str | Path | None = None, *, train: bool = False) -> EvaluationSet:
    """Load an evaluation set, or with `train` the training part for a teacher.

    Parameters
    ----------
    name : str
        ``digits`` (in scikit-learn, offline), a torchvision set, ``folder`` or the path of an ``.npz``.
    root : path, optional
        Where torchvision sets and image folders are; nothing is ever downloaded.
    train : bool
        The training part instead of the test part.

    Raises
    ------
    DataError
        If the name is unknown or the files are missing or unreadable.
    """
    if name == "digits":
        return _digits(train)
    if name.endswith(".npz"):
        return _archive(Path(name), train)
    if name not in TORCHVISION_SETS and name != "folder":
        raise DataError("--dataset", name, _ALLOWED)
    if root is None:
        raise DataError("--root", "not given", f"the folder that holds {name}", "add --root FOLDER")
    if not Path(root).is_dir():
        raise DataError("--root", f"{root} is not a folder", "an existing folder")
    return _image_folder(Path(root), train) if name == "folder" else _torchvision(name, Path(root), train)


@dataclass(frozen=True, kw_only=True)
class Payloads:
    """Inputs as the chip receives them: integers, nothing is scaled.

    Parameters
    ----------
    name : str
    inputs : array of int, (N, *shape), or (N, T, *shape) for a frame at each timestep [LSB]
        Spikes (0 and 1), graded messages, or biases.
    labels : array of int64, (N,), or None
    """

    name: str
    inputs: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None


def load_payloads(name: str, limit: int | None = None) -> Payloads | None:
    """Load the array ``payloads`` of an ``.npz``, with ``y_test`` where it has one; None if it has no such array.

    Parameters
    ----------
    name : str
        Path of the ``.npz``; other names have no payloads.
    limit : int, optional
        Only the first ones.

    Raises
    ------
    DataError
        If the archive is unreadable, the payloads are no integers, or there is not one label for each.
    """
    path = Path(name)
    if path.suffix != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "payloads.npy" not in names:
        return None
    if limit is not None and limit < 1:
        raise DataError(name, f"{limit} inputs asked for", "at least 1")
    inputs, *more = _read_archive(path, ("payloads", "y_test") if "y_test.npy" in names else ("payloads",))
    if not np.issubdtype(inputs.dtype, np.integer) or not inputs.size:
        raise DataError(f"{path}:payloads", f"{inputs.dtype} {inputs.shape}", "integers, at least one sample")
    for stored in more:
        _check_labels(path, "y_test", stored)
        if len(stored) != len(inputs):
            raise DataError(f"{path}:y_test", f"{len(stored)} labels", f"{len(inputs)}, one for each of payloads")
    labels = more[0][:limit].astype(np.int64) if more else None
    return Payloads(name=path.stem, inputs=inputs[:limit].astype(np.int64), labels=labels)


def load_calibration(path: str | Path) -> npt.NDArray[np.float64]:
    """Load the array ``images`` of an ``.npz``: what a network is calibrated on, unlabelled.

    Returns
    -------
    array of float64, (N, *shape), or (N, T, *shape) for a frame at each timestep
        As they are, but for uint8 images, which become [0, 1].

    Raises
    ------
    DataError
        If the archive is unreadable or holds no finite numbers.
    """
    (images,) = _read_archive(Path(path), ("images",))
    if images.dtype.kind not in "fuib" or not images.size or images.ndim < 2 or not np.isfinite(images).all():
        got = f"{images.dtype} {images.shape}"
        raise DataError(f"{path}:images", got, "finite numbers, (samples, ...), at least one sample")
    return images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)


def _digits(train: bool) -> EvaluationSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test = np.arange(len(bunch.target)) % DIGITS_TEST_EVERY == 0
    part = ~test if train else test
    images = (bunch.images[part][:, None] / 16).astype(np.float32)
    return EvaluationSet(
        name="digits",
        images=images,
        labels=bunch.target[part].astype(np.int64),
        classes=tuple(str(label) for label in bunch.target_names),
    )


def _torchvision(name: str, root: Path, train: bool) -> EvaluationSet:
    from torchvision import datasets

    factory: Callable[..., Any] = getattr(datasets, TORCHVISION_SETS[name])
    legacy = root / TORCHVISION_SETS[name] / "processed"
    if legacy.exists():
        # torchvision would prefer the torch files of its versions before 0.9 there, which can hold code.
        raise DataError(str(legacy), "torch files of an old torchvision", "the folder raw beside it", "remove it")
    try:
        source = factory(root=str(root), train=train, download=False)
    except Exception as error:  # a damaged file raises whatever torchvision's reader meets first
        raise DataError(
            f"--root {root}",
            f"no readable {name} there ({str(error) or type(error).__name__})",
            "torchvision's own layout",
            "download the set with torchvision, or point --root at it",
        ) from error
    pixels = np.asarray(source.data)
    images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return _from_arrays(name, images, np.asarray(source.targets), tuple(source.classes))


def _image_folder(root: Path, train: bool) -> EvaluationSet:
    from torchvision import datasets

    folder = next((root / part for part in (("train",) if train else ("test", "val")) if (root / part).is_dir()), root)
    if train and folder == root:
        raise DataError(f"--root {root}", "no folder 'train'", "train/<class>/<image>")
    try:
        source = datasets.ImageFolder(str(folder))
        pixels = [np.asarray(image.convert("RGB")) for image, _ in source]
    except Exception as error:  # a damaged image raises whatever its decoder meets first
        raise DataError(str(folder), f"not an image folder ({error})", "<class>/<image> files") from error
    shapes = {image.shape for image in pixels}
    if len(shapes) != 1:
        raise DataError(str(folder), f"images of {len(shapes)} sizes", "one size", "resize them first")
    images = np.stack(pixels).transpose(0, 3, 1, 2)
    return _from_arrays(folder.name, images, np.asarray(source.targets), tuple(source.classes))


def _archive(path: Path, train: bool) -> EvaluationSet:
    keys = ("x_train", "y_train") if train else ("x_test", "y_test")
    images, labels = _read_archive(path, keys)
    _check_labels(path, keys[1], labels)
    if images.ndim == 3:
        images = images[:, None]
    classes = tuple(str(index) for index in range(int(labels.max()) + 1))
    return _from_arrays(path.stem, images, labels, classes)


def _read_archive(path: Path, keys: tuple[str, ...]) -> list[npt.NDArray[Any]]:
    try:
        existing_file(path)
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                raise DataError(str(path), f"holds {list(archive)}", " and ".join(keys))
            return [_stored_array(path, archive, key) for key in keys]
    except DataError:
        raise
    except StarsDeployError as error:
        raise DataError(error.where, error.got, error.allowed, error.remedy) from error
    except Exception as error:  # a damaged zip raises whatever its decoder met first
        raise DataError(str(path), f"not a readable .npz ({error})", f"arrays {' and '.join(keys)}") from error


def _check_labels(path: Path, key: str, labels: npt.NDArray[Any]) -> None:
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1 or not labels.size:
        raise DataError(f"{path}:{key}", f"{labels.dtype} {labels.shape}", "integers, one for each image")
    if not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        raise DataError(f"{path}:{key}", f"labels from {labels.min()} to {labels.max()}", f"0 to {MOST_CLASSES - 1}")


def _stored_array(path: Path, archive: Any, key: str) -> npt.NDArray[Any]:
    """Return an array of an archive, if the file really holds what its header promises."""
    with archive.zip.open(f"{key}.npy") as stream:
        header: Any = np.lib.format
        read = {(1, 0): header.read_array_header_1_0, (2, 0): header.read_array_header_2_0}
        shape, _, dtype = read[header.read_magic(stream)](stream)
    if dtype.hasobject:
        raise DataError(f"{path}:{key}", "Python objects, which are never unpickled", "an array of numbers")
    promised = math.prod(shape) * dtype.itemsize
    if promised > archive.zip.getinfo(f"{key}.npy").file_size:
        raise DataError(
            f"{path}:{key}", f"a header that promises {promised} bytes, more than there are", "a whole file"
        )
    array: npt.NDArray[Any] = archive[key]
    return array


def _from_arrays(
    name: str, images: npt.NDArray[Any], labels: npt.NDArray[Any], classes: tuple[str, ...]
) -> EvaluationSet:
    if images.dtype.kind not in "fui":
        raise DataError(name, f"images of {images.dtype}", "floats in [0, 1] or uint8")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    return EvaluationSet(name=name, images=images.astype(np.float32), labels=labels.astype(np.int64), classes=classes)
