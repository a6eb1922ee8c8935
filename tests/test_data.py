import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from stars_deploy.data import EvaluationSet, load_dataset, load_payloads
from stars_deploy.errors import DataError


def images_of(count, shape=(1, 4, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def write_idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.tobytes())


def fashion(root, count=5):
    """A tiny set in torchvision's layout."""
    images, labels = images_of(count, (28, 28)), np.arange(count, dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(root / f"FashionMNIST/raw/{part}-images-idx3-ubyte", images)
        write_idx(root / f"FashionMNIST/raw/{part}-labels-idx1-ubyte", labels)
    return images, labels


def test_digits_splits_are_disjoint_and_complete():
    train, test = load_dataset("digits", train=True), load_dataset("digits")
    assert len(train.images) + len(test.images) == 1797
    assert len(test.images) == 360
    assert test.images.shape[1:] == (1, 8, 8)
    assert test.images.dtype == np.float32
    assert test.images.max() == 1
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) < 5  # a few digits are drawn alike
    assert len(test.first(7).images) == 7
    assert len(test.first(None).images) == 360
    assert test.classes == tuple("0123456789")
    with pytest.raises(DataError, match=r"0 images asked for"):
        test.first(0)


def test_torchvision_set_is_read_from_its_folder(tmp_path):
    images, labels = fashion(tmp_path)
    data = load_dataset("fashion-mnist", tmp_path)
    assert np.array_equal(data.images[:, 0], images.astype(np.float32) / 255)
    assert np.array_equal(data.labels, labels)
    assert data.classes[1] == "Trouser"


@pytest.mark.parametrize("keep", [0, 3, 20, -100])
def test_truncated_idx_is_refused(tmp_path, keep):
    fashion(tmp_path)
    file = tmp_path / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"no readable fashion-mnist"):
        load_dataset("fashion-mnist", tmp_path)


def test_idx_with_other_counts_is_refused(tmp_path):
    fashion(tmp_path)
    write_idx(tmp_path / "FashionMNIST/raw/t10k-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"one label each"):
        load_dataset("fashion-mnist", tmp_path)


def test_old_torch_files_beside_a_set_are_not_opened(tmp_path):
    fashion(tmp_path)
    (tmp_path / "FashionMNIST/processed").mkdir()
    with pytest.raises(DataError, match=r"old torchvision"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("imagenet", None, "fashion-mnist"),
        ("cifar10", None, "--root: not given"),
        ("cifar10", "missing", "is not a folder"),
        ("cifar10", ".", "no readable cifar10"),
        ("nothing.npz", None, "does not exist"),
    ],
)
def test_missing_sets_are_refused(tmp_path, monkeypatch, name, root, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset(name, root)


def test_image_folder_reads_classes_and_pixels(tmp_path):
    images = images_of(4, (5, 6, 3))
    for index, image in enumerate(images):
        folder = tmp_path / "test" / ("cat" if index < 3 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    data = load_dataset("folder", tmp_path)
    assert data.images.shape == (4, 3, 5, 6)
    assert np.array_equal(data.images[3], images[3].transpose(2, 0, 1).astype(np.float32) / 255)
    assert data.labels.tolist() == [0, 0, 0, 1]
    assert data.classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"no folder 'train'"):
        load_dataset("folder", tmp_path, train=True)
    Image.fromarray(images[0][:4]).save(tmp_path / "test/cat/other.png")
    with pytest.raises(DataError, match=r"2 sizes"):
        load_dataset("folder", tmp_path)
    (tmp_path / "test/cat/other.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"not an image folder"):
        load_dataset("folder", tmp_path)


def test_archive_is_read(tmp_path):
    images = images_of(6)
    np.savez(tmp_path / "a.npz", x_test=images[:, 0], y_test=np.arange(6) % 3, x_train=images / 255.0, y_train=[0] * 6)
    data = load_dataset(str(tmp_path / "a.npz"))
    assert np.array_equal(data.images, images.astype(np.float32) / 255)
    assert data.classes == ("0", "1", "2")
    assert load_dataset(str(tmp_path / "a.npz"), train=True).classes == ("0",)


def bad_archives():
    images, labels = images_of(3), np.arange(3)
    nan = images.astype(float) / 255
    nan[1, 0, 2, 2] = np.nan
    return {
        "keys": ({"x": images}, "x_test and y_test"),
        "objects": ({"x_test": np.array([{"a": 1}] * 3, dtype=object), "y_test": labels}, "never unpickled"),
        "nan": ({"x_test": nan, "y_test": labels}, "NaN"),
        "range": ({"x_test": images.astype(float), "y_test": labels}, "pixels outside"),
        "text": ({"x_test": np.full((3, 1, 2, 2), "a"), "y_test": labels}, "images of <U1"),
        "negative": ({"x_test": images, "y_test": labels - 1}, "labels from -1 to 1"),
        "huge label": ({"x_test": images, "y_test": labels * 10**12}, "65535"),
        "float labels": ({"x_test": images, "y_test": labels / 2}, "integers"),
        "no labels": ({"x_test": images[:0], "y_test": labels[:0]}, "integers"),
        "counts": ({"x_test": images, "y_test": labels[:2]}, "one label each"),
        "flat": ({"x_test": images.reshape(3, -1), "y_test": labels}, "images .N, C, H, W."),
        "no pixels": ({"x_test": images[:, :, :0], "y_test": labels}, "no images"),
    }


@pytest.mark.parametrize("case", bad_archives())
def test_bad_archives_are_refused(tmp_path, case):
    content, message = bad_archives()[case]
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / "bad.npz"))


def test_damaged_archives_are_refused(tmp_path):
    file = tmp_path / "bad.npz"
    np.savez(file, x_test=images_of(3), y_test=np.arange(3))
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"PK\x03\x04 nothing", b"version https://git-lfs.github.com/spec/v1\n"):
        file.write_bytes(content)
        with pytest.raises(DataError):
            load_dataset(str(file))


def test_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 1, 8, 8)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x_test.npy", header.getvalue() + b"few")
        labels = io.BytesIO()
        np.save(labels, np.arange(3))
        archive.writestr("y_test.npy", labels.getvalue())
    with pytest.raises(DataError, match=r"promises 64000000000000 bytes"):
        load_dataset(str(tmp_path / "bomb.npz"))


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(DataError, match=r"labels from 0 to 2"):
        EvaluationSet(name="x", images=np.zeros((3, 1, 2, 2), np.float32), labels=np.arange(3), classes=("only", "two"))


def test_compressed_idx_alone_is_refused(tmp_path):
    fashion(tmp_path)
    for file in (tmp_path / "FashionMNIST/raw").iterdir():
        file.with_suffix(".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    with pytest.raises(DataError, match=r"download the set with torchvision"):
        load_dataset("fashion-mnist", tmp_path)


# ---------------------------------------------------------------- payloads


def test_payloads_are_taken_as_they_are(tmp_path):
    file = tmp_path / "events.npz"
    frames = np.random.default_rng(0).integers(-9, 300, (5, 4, 2, 3, 3)).astype(np.int16)
    np.savez(file, payloads=frames, y_test=np.array([0, 1, 2, 1, 0]))
    found = load_payloads(str(file), 3)
    assert found.name == "events" and found.inputs.dtype == np.int64
    np.testing.assert_array_equal(found.inputs, frames[:3])
    np.testing.assert_array_equal(found.labels, [0, 1, 2])
    np.savez(file, payloads=frames)
    assert load_payloads(str(file)).labels is None


def test_what_is_no_payload_is_left_to_the_others(tmp_path):
    np.savez(tmp_path / "images.npz", x_test=np.zeros((1, 1, 2, 2)), y_test=[0])
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("digits", str(tmp_path / "images.npz"), str(tmp_path / "text.npz"), str(tmp_path / "none.npz")):
        assert load_payloads(name) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"payloads": np.zeros((2, 3))}, "payloads.*float64"),
        ({"payloads": np.zeros((0, 3), int)}, "at least one sample"),
        ({"payloads": np.zeros((2, 3), int), "y_test": [0]}, "1 labels"),
        ({"payloads": np.zeros((2, 3), int), "y_test": [0.0, 1.0]}, "y_test.*float64"),
        ({"payloads": np.zeros((2, 3), int), "y_test": [0, -1]}, "labels from -1"),
    ],
)
def test_bad_payloads_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=message):
        load_payloads(str(tmp_path / "bad.npz"))


def test_at_least_one_payload_must_be_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", payloads=np.zeros((2, 3), int))
    with pytest.raises(DataError, match="0 inputs"):
        load_payloads(str(tmp_path / "a.npz"), 0)
