"""Results on disk under the content that they depend on: written whole, checked when read, bounded in size.

An entry is one file: a line that says what it is, its key, and the SHA-256 of the rest; then the result, as the bytes
that whoever made it wrote (an ``.npz``). Nothing in it is unpickled. An entry that is not exactly what was written is
taken away and computed again. Any number of processes may read and write one cache at the same time: an entry appears
under its name when it is complete, and equal keys mean equal content, so the last writer changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stars_deploy.artifacts import written_whole
from stars_deploy.errors import ConfigError, FormatError, StarsDeployError

Result = TypeVar("Result")

#: What an entry may take together with all others [bytes].
DEFAULT_LIMIT = 4 << 30
_MAGIC = "stars-deploy result 1"
_SUFFIX = ".result"
#: A file that a writer left unfinished is rubbish after this time [s].
_ABANDONED = 86400.0


def default_folder() -> Path:
    """Return the user's cache: ``$XDG_CACHE_HOME/stars-deploy``, or ``~/.cache/stars-deploy``."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache"
    return base / "stars-deploy"


def choose_cache(folder: Path | None, *, unwanted: bool = False) -> ResultCache | None:
    """Return the cache in `folder`, by default the user's; None where it is unwanted.

    Raises
    ------
    ConfigError
        If a folder is given for a cache that is unwanted.
    """
    if not unwanted:
        return ResultCache(folder=default_folder() if folder is None else folder)
    if folder is not None:
        raise ConfigError("--cache", f"{folder}, together with --no-cache", "one of the two")
    return None


@dataclass(frozen=True, kw_only=True)
class ResultCache:
    """A folder of results by key.

    Parameters
    ----------
    folder : path
        Made when the first entry is kept; entries lie in ``results`` below it, and nothing else in it is touched.
    limit : int
        What all entries together may take [bytes]; beyond it those that were used longest ago are removed.
    """

    folder: Path
    limit: int = DEFAULT_LIMIT

    def find(self, key: str, decode: Callable[[bytes], Result], noted: Callable[[str], None]) -> Result | None:
        """Return the result kept under `key`, or None where there is none.

        Parameters
        ----------
        key : str
            See :func:`stars_deploy.sweep.content.content_key`.
        decode : callable
            Reads the bytes that were kept; raises an error of ours for what it does not know.
        noted : callable
            Told of an entry that is damaged; it is removed, and None returned.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:  # not there, or not readable by us: computing is always right
            return None
        try:
            result = decode(_checked(path, key, content))
        except StarsDeployError as error:
            noted(f"cache entry {path} is damaged ({error.got}) and is computed again")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the last use, which decides what is removed first
        return result

    def keep(self, key: str, content: bytes) -> None:
        """Keep `content` under `key`, and remove the entries used longest ago if all take more than the limit.

        Raises
        ------
        ArtifactError
            If the folder cannot be written to.
        """
        header = f"{_MAGIC} {key} {hashlib.sha256(content).hexdigest()}\n".encode()
        if len(header) + len(content) > self.limit:
            return
        with written_whole(self._path(key)) as draft, open(draft, "wb") as stream:
            stream.write(header)
            stream.write(content)
        self._shrink()

    def _path(self, key: str) -> Path:
        return self.folder / "results" / f"{key}{_SUFFIX}"

    def _shrink(self) -> None:
        entries, now = [], time.time()
        for path in (self.folder / "results").iterdir():
            with contextlib.suppress(OSError):  # another process may have removed it meanwhile
                status = path.stat()
                if path.suffix == _SUFFIX and not path.name.startswith("."):
                    entries.append((status.st_mtime_ns, status.st_size, path))
                elif path.suffix == _SUFFIX and now - status.st_mtime > _ABANDONED:
                    path.unlink()
        excess = sum(size for _, size, _ in entries) - self.limit
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            with contextlib.suppress(OSError):  # removed by another process, or another user's
                path.unlink()
            excess -= size


def _checked(path: Path, key: str, content: bytes) -> bytes:
    header, separator, result = content.partition(b"\n")
    expected = f"{_MAGIC} {key} {hashlib.sha256(result).hexdigest()}".encode()
    if not separator or header != expected:
        raise FormatError(str(path), "its checksum is another", "what was written", "remove it")
    return result
