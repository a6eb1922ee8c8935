"""What a result depends on, as one SHA-256: equal content has an equal key, whatever its files are called."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import stars_deploy


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def content_key(*parts: object) -> str:
    """Return the SHA-256 of `parts`, in hexadecimal: 64 digits.

    Parameters
    ----------
    *parts : None, bool, int, float, str, bytes, array, dataclass, mapping, or tuple or list of these
        A dataclass counts with its type and every field that its constructor takes; an array with its number type and
        shape.

    Raises
    ------
    TypeError
        If a part is something else: its content is not known, so a key would lie.
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


@functools.cache
def code_version() -> str:
    """Return the SHA-256 of every source file and preset (YAML) of this package, in hexadecimal.

    A result may depend on any module that the work imports. All of them together are more than that, and never less: a
    change of the sources is never missed, also between two commits of one version.
    """
    root = Path(stars_deploy.__file__).parent
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root, followlinks=True):  # export and targets are links in a checkout
        folders.sort()
        for name in sorted(name for name in files if name.endswith((".py", ".yaml"))):
            path = Path(folder, name)
            _feed(digest, (path.relative_to(root).as_posix(), path.read_bytes()))
    return digest.hexdigest()


def _feed(digest: _Digest, value: object) -> None:
    """Add `value` so that no two values give the same bytes: a tag, a length, then the content."""
    if value is None or isinstance(value, (bool, int, float, np.number, np.bool_)):
        _add(digest, "number", repr(value.item() if isinstance(value, np.generic) else value).encode())
    elif isinstance(value, str):
        _add(digest, "text", value.encode())
    elif isinstance(value, bytes):
        _add(digest, "bytes", value)
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("an array of Python objects has no content key")
        _add(digest, f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        _feed(digest, ["mapping", *sorted(value.items())])
    elif isinstance(value, (tuple, list)):
        _add(digest, "sequence", str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(digest, ["dataclass", type(value).__qualname__, *_fields(value)])
    else:
        raise TypeError(f"{type(value).__name__} has no content key")


def _fields(value: Any) -> list[tuple[str, object]]:
    return [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value) if item.init]


def _add(digest: _Digest, tag: str, content: bytes) -> None:
    digest.update(f"{tag} {len(content)}:".encode())
    digest.update(content)
