"""Files written whole or not at all, and the hashes that tell one from another."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import ArtifactError

#: What an operating system answers where there is no room.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LFS_HEADER = b"version https://git-lfs"


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` when the block ends well.

    Whatever happens inside (an error, a full disk, Ctrl-C), an earlier `path` stays as it was and nothing
    half-written is left behind.

    Raises
    ------
    ArtifactError
        If the folder cannot be made or written to, or the disk is full.
    """
    final = Path(path)
    draft: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.stem}.", suffix=final.suffix, dir=final.parent)
        os.close(handle)
        draft = Path(name)
        yield draft
        draft.chmod(0o644)
        draft.replace(final)
    except OSError as error:
        if error.errno is None:  # not from the file system: h5py and others raise OSError for bad content
            raise
        full = error.errno in FULL_DISK
        raise ArtifactError(
            str(final),
            f"could not be written ({error.strerror})",
            remedy="free some space and run again" if full else "choose a folder you can write to with --out",
        ) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(
    path: str | os.PathLike[str], keep: type[BaseException] | tuple[type[BaseException], ...] = ()
) -> Iterator[Path]:
    """Give a folder beside `path` to write into, and move its files to `path` when the block ends well.

    Parameters
    ----------
    path : path
        Made if it does not exist; files of other names in it stay.
    keep : type of exception, or several
        After these the files are moved as well, for inspection. After any other nothing has changed.

    Raises
    ------
    ArtifactError
        If the folder cannot be made or written to.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise ArtifactError(
            str(final), f"could not be written ({error.strerror})", remedy="choose a folder you can write to with --out"
        ) from error
    try:
        try:
            yield draft
        except keep:
            _move_files(draft, final)
            raise
        _move_files(draft, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    try:
        target.mkdir(exist_ok=True)
        for file in sorted(source.iterdir()):
            file.replace(target / file.name)
    except OSError as error:
        raise ArtifactError(
            str(target), f"could not be written ({error.strerror})", remedy="choose another folder with --out"
        ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all. NaN is refused (it is not JSON)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays as a compressed NumPy archive, whole or not at all."""
    # In memory first: on a full disk an open zip file would complain once more when it is thrown away.
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]  # its stub takes **kwds for allow_pickle
    with written_whole(path) as draft:
        draft.write_bytes(archive.getbuffer())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises
    ------
    ArtifactError
        If the file is missing or is not JSON.
    """
    existing_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtifactError(str(path), f"not readable as JSON ({error})", remedy="write it again") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` if it is a file with content of its own.

    Raises
    ------
    ArtifactError
        If it is missing, a folder, unreadable, empty, or a Git-LFS pointer in place of the file.
    """
    file = Path(path)
    try:
        if not file.is_file():
            got = "is a folder" if file.is_dir() else "does not exist"
            raise ArtifactError(str(file), got, "a file", "check the path")
        with open(file, "rb") as stream:
            head = stream.read(len(_LFS_HEADER))
    except OSError as error:
        raise ArtifactError(str(file), f"cannot be read ({error.strerror})", "a readable file") from error
    if not head:
        raise ArtifactError(str(file), "is empty", "a file with content", "copy or write it again")
    if head == _LFS_HEADER:
        raise ArtifactError(
            str(file), "is a Git-LFS pointer, not the file itself", remedy="run `git lfs pull` in its repository"
        )
    return file
