import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from stars_deploy import weights
from stars_deploy.errors import ArtifactError, FormatError, TeacherError
from stars_deploy.weights import check_finite, read_tensors, read_weights, without_wrapper, write_tensors

OLD_TORCH = weights._torch_version() < weights.SAFE_TORCH
STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Writer:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip_keeps_bits_and_description(tmp_path):
    shared = torch.rand(4)
    tensors = {**STATE, "one": shared, "two": shared, "turned": torch.rand(3, 2).T, "count": torch.tensor(3)}
    write_tensors(tensors, {"spec": "x", "n": [1, 2]}, tmp_path / "w.safetensors")
    read, description = read_tensors(tmp_path / "w.safetensors")
    assert same(read, tensors)
    assert description == {"spec": "x", "n": [1, 2]}
    with pytest.raises(ValueError, match=r"JSON"):
        write_tensors(STATE, {"loss": float("nan")}, tmp_path / "w.safetensors")
    assert same(read_tensors(tmp_path / "w.safetensors")[0], tensors)


def test_damaged_tensors_are_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    with pytest.raises(ArtifactError, match=r"does not exist"):
        read_tensors(file)
    write_tensors(STATE, {}, file)
    whole = file.read_bytes()
    for content in (whole[:-4], whole[:20], b"\xff" * 16, (2**60).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        with pytest.raises(FormatError, match=r"cannot be read"):
            read_tensors(file)
    for text in ("[1]", "3", "{", "[" * 100000):
        save_file(STATE, str(file), metadata={"stars_deploy": text})
        with pytest.raises(FormatError):
            read_tensors(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ArtifactError, match=r"git lfs pull"):
        read_tensors(file)


def test_weights_of_safetensors_need_no_trust(tmp_path):
    save_file(STATE, str(tmp_path / "w.safetensors"))
    state, description = read_weights(tmp_path / "w.safetensors")
    assert same(state, STATE)
    assert description == {}


@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict", "model"])
def test_torch_files_are_read_plain_and_nested(tmp_path, nested):
    content = STATE if nested is None else {nested: STATE, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "w.pt")
    state, _ = read_weights(tmp_path / "w.pt", trust=OLD_TORCH)
    assert same(state, STATE)


def test_torch_files_need_trust_where_torch_is_old(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "w.pth")
    monkeypatch.setattr(weights.torch, "__version__", "2.5.1+cpu")
    with pytest.raises(TeacherError, match=r"CVE-2025-32434.*convert.*--trust-weights"):
        read_weights(tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth", trust=True)[0], STATE)
    monkeypatch.setattr(weights.torch, "__version__", "2.6.0")
    assert same(read_weights(tmp_path / "w.pth")[0], STATE)


@pytest.mark.skipif(not OLD_TORCH, reason="torch is new enough here")
def test_old_torch_is_recognised_without_help(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"CVE-2025-32434"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_torch_file_is_never_run(tmp_path, form):
    target, file = tmp_path / "made", tmp_path / "w.pt"
    hostile = {**STATE, "evil": Writer(target)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(TeacherError, match=r"never loaded|cannot be read"):
        read_weights(file, trust=True)
    assert not target.exists()
    if form == "zip":  # the file is a working attack
        torch.load(file, weights_only=False)
        assert target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.rand(2), "holds a Tensor"),
        ({}, "without weights"),
        ([1, 2], "holds a list"),
        ({**STATE, "epoch": 3}, "epoch: a int"),
        ({1: torch.rand(2)}, "names and dense tensors"),
        ({"a": torch.eye(2).to_sparse()}, "dense"),
        ({"a": torch.eye(2, dtype=torch.complex64)}, "dense"),
    ],
)
def test_torch_files_of_something_else_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=message):
        read_weights(tmp_path / "w.pt", trust=True)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"\x80\x02garbage", b"PK\x05\x06", b"hello"):
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(TeacherError):
            read_weights(tmp_path / "w.pt", trust=True)
    (tmp_path / "w.h5").write_bytes(b"hello")
    with pytest.raises(TeacherError, match=r"a \.h5 file"):
        read_weights(tmp_path / "w.h5")
    with pytest.raises(TeacherError, match=r"does not exist"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "w.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(TeacherError, match=r"git lfs pull"):
        read_weights(tmp_path / "w.pt", trust=True)


def test_compressed_torch_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(200_000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(TeacherError, match=r"unpacks to"):
        read_weights(tmp_path / "bomb.pt", trust=True)


def test_wrapper_prefixes_come_off_only_where_all_names_have_them():
    wrapped = {f"module.{name}": value for name, value in STATE.items()}
    assert same(without_wrapper(wrapped, STATE), STATE)
    assert same(without_wrapper({f"module._orig_mod.{name}": v for name, v in STATE.items()}, STATE), STATE)
    assert same(without_wrapper(STATE, STATE), STATE)
    mixed = {**wrapped, "b": torch.rand(1)}
    assert same(without_wrapper(mixed, STATE), mixed)
    # A network with a part of its own called `module` keeps it.
    assert same(without_wrapper(wrapped, wrapped), wrapped)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    check_finite({**STATE, "n": torch.tensor(2**40)}, "file")
    broken = {**STATE, "b.weight": torch.tensor([0.0, value, value])}
    with pytest.raises(TeacherError, match=r"file:b.weight: 2 of 3 values are NaN or infinite"):
        check_finite(broken, "file")
