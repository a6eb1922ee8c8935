"""Files are written whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from stars_deploy.artifacts import existing_file, read_json, sha256, staged_folder, write_json, written_whole
from stars_deploy.errors import ArtifactError


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_written_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "a.bin"
    with written_whole(path) as draft:
        assert draft.parent == path.parent and draft.suffix == ".bin"
        assert not path.exists()
        draft.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError("in the middle"), KeyboardInterrupt(), OSError("h5py without a number")])
def test_error_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), written_whole(path) as draft:
        draft.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EACCES, "choose a folder")],
)
def test_file_system_errors_say_what_to_do(tmp_path, number, remedy):
    with (
        pytest.raises(ArtifactError, match=rf"a\.bin: could not be written .*{remedy}"),
        written_whole(tmp_path / "a.bin"),
    ):
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(ArtifactError, match="could not be written"), written_whole(tmp_path / "out" / "a.bin"):
        pass
    assert (tmp_path / "out").read_text() == "not a folder"


FULL_DISK = """
import resource, signal, sys
from stars_deploy.artifacts import write_json
from stars_deploy.errors import ArtifactError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_json(sys.argv[1], list(range(10000)))
except ArtifactError as error:
    print(error)
"""


def test_full_disk(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"old": True})
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert "report.json: could not be written" in done.stdout and "free some space" in done.stdout
    assert read_json(path) == {"old": True}
    assert names(tmp_path) == ["report.json"]


INTERRUPTED = """
import sys, time
from stars_deploy.artifacts import written_whole
with written_whole(sys.argv[1]) as draft, open(draft, "wb") as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_interrupt(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", INTERRUPTED, path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    assert len(names(tmp_path)) == 2
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, None]})
    assert read_json(path) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"ä": [1, None]}
    path.write_text('{"cut": ')
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        read_json(path)


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * (3 << 20))
    assert sha256(path) == "6f850bc94ae6f7de14297c01616c36d712d22864497b28a63b81d776b035e656"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist.*check the path"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "Git-LFS pointer.*git lfs pull",
        ),
    ],
)
def test_files_without_content_of_their_own(tmp_path, make, message):
    path = tmp_path / "a.net"
    make(path)
    with pytest.raises(ArtifactError, match=message):
        existing_file(path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    assert existing_file(str(path)) == path

    def refuse(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ArtifactError, match=r"cannot be read \(Permission denied\)"):
        existing_file(path)


def test_staged_files_arrive_together_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as draft:
        (draft / "a").write_text("one")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    with pytest.raises(KeyError), staged_folder(out, keep=ValueError) as draft:
        (draft / "a").write_text("two")
        (draft / "b").write_text("two")
        raise KeyError
    assert (out / "a").read_text() == "one" and not (out / "b").exists()
    with pytest.raises(ValueError, match="look"), staged_folder(out, keep=ValueError) as draft:
        (draft / "a").write_text("three")
        raise ValueError("look at it")
    assert (out / "a").read_text() == "three"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ArtifactError, match=r"file.*could not be written.*--out"), staged_folder(path) as draft:
            (draft / "a").write_text("one")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
