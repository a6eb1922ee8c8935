"""HDF5 groups of files that nobody vouches for: every value is checked before it is read into memory.

Refused by name: links that leave the group (soft, external), data stored in other files, sizes that the file cannot
hold, types that are not plain numbers or text, NaN, and numbers that are not whole where they must be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from stars_deploy.errors import FormatError
from stars_deploy.graph import FloatArray
from stars_deploy.quantized import IntArray
from stars_deploy.targets.hdf5_text import DamagedTextError, Heaps, TextReader

#: Most values that all datasets of a file may hold together; a dense layer of 8,192 x 8,192, 512 MiB of int64.
MAX_VALUES = 1 << 26
#: Most whole-number magnitude that is read; every field of a NetX file is narrower.
MAX_MAGNITUDE = 1 << 31
#: More than deflate can compress (1,032 to 1): a dataset that claims more than that was not written by compressing.
MAX_COMPRESSION = 1100
MAX_TEXT = 256
#: deflate, shuffle, fletcher32: those that HDF5 holds itself and that need no code from elsewhere.
_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32})
_DAMAGED = "the file is damaged or truncated: copy or write it again"


@dataclass(kw_only=True)
class Allowance:
    """How many values may still be read from a file, over all its datasets, and how many of them there were."""

    values: int = MAX_VALUES
    most: int = MAX_VALUES


@dataclass(frozen=True, kw_only=True)
class GuardedGroup:
    """A group of an open file, its place in the file for messages, and the size of the file [bytes]."""

    file: str
    name: str
    node: h5py.Group
    file_size: int
    left: Allowance = field(default_factory=Allowance)
    heaps: Heaps = field(default_factory=Heaps)

    def error(self, name: str, got: object, allowed: str = "", remedy: str = "") -> FormatError:
        """Return the error for the member called `name` (or for the group itself if it is empty)."""
        place = "/".join(part for part in (self.name, name) if part)
        return FormatError(f"{self.file}: {place}" if place else self.file, got, allowed, remedy)

    def names(self) -> list[str]:
        """Return the names of the members."""
        return list(self.node.keys())

    def __contains__(self, name: str) -> bool:
        return name in self.node.keys()  # noqa: SIM118  # h5py follows links for ``in node``

    def only(self, allowed: frozenset[str], remedy: str = "") -> None:
        """Refuse members that are not `allowed`: what is not understood is not skipped."""
        unknown = sorted(set(self.names()) - allowed)
        if unknown:
            raise self.error(unknown[0], "a field that is not understood", ", ".join(sorted(allowed)), remedy)

    def group(self, name: str) -> GuardedGroup:
        """Return a member group."""
        node = self._member(name)
        if not isinstance(node, h5py.Group):
            raise self.error(name, "a dataset", "a group")
        place = f"{self.name}/{name}" if self.name else name
        return replace(self, name=place, node=node)

    def is_group(self, name: str) -> bool:
        """Whether there is a member called `name`, and it is a group."""
        return name in self and isinstance(self._member(name), h5py.Group)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a dataset of numbers as its header says it; nothing is read."""
        return tuple(int(size) for size in self._dataset(name).shape or ())

    def numbers(self, name: str, most: int = MAX_VALUES, integers: bool = False) -> IntArray:
        """Return a dataset of whole numbers.

        Parameters
        ----------
        name : str
        most : int
            Most values that are read.
        integers : bool
            Refuse whole numbers that are stored as floats.
        """
        node = self._dataset(name)
        if integers and node.dtype.kind == "f":
            raise self.error(name, f"dtype {node.dtype}", "integers: Lava fails on others here", "store it as integers")
        values = self._read(name, node, most)
        if not np.isfinite(values).all():
            raise self.error(name, "NaN or infinite values", "whole numbers")
        low, high = values.min(), values.max()
        whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
        if not whole or low < -MAX_MAGNITUDE or high > MAX_MAGNITUDE:
            raise self.error(name, f"values from {low} to {high}", "whole numbers below 2**31")
        return values.astype(np.int64)

    def floats(self, name: str, most: int = MAX_VALUES) -> FloatArray:
        """Return a dataset of finite numbers of at most 64 bits; `most` as for :meth:`numbers`."""
        values = self._read(name, self._dataset(name), most)
        if values.dtype.itemsize > 8:
            raise self.error(name, f"dtype {values.dtype}", "numbers of at most 64 bits")
        with np.errstate(invalid="ignore"):  # signalling NaN of damaged files
            values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise self.error(name, "NaN or infinite values", "finite numbers")
        return values

    def number(self, name: str) -> int:
        """Return a dataset of one whole number."""
        return int(self.numbers(name, 1).reshape(-1)[0])

    def text(self, name: str) -> str:
        """Return a dataset of one short ASCII text."""
        return str(self.texts(name, 1, encoding="ascii").reshape(-1)[0])

    def is_text(self, name: str) -> bool:
        """Whether there is a member called `name`, and it is a dataset of texts."""
        if name not in self or self.is_group(name):
            return False
        dtype = self._dataset(name).dtype
        return h5py.check_string_dtype(dtype) is not None or dtype.kind == "S"

    def texts(self, name: str, most: int, longest: int = MAX_TEXT, encoding: str = "utf-8") -> npt.NDArray[np.object_]:
        """Return a dataset of at most `most` texts of at most `longest` bytes each."""
        node = self._dataset(name)
        variable = h5py.check_string_dtype(node.dtype) is not None and node.dtype.kind == "O"
        long = f"texts of at most {longest} bytes"
        if not (variable or node.dtype.kind == "S") or node.dtype.itemsize > max(longest, 8):
            raise self.error(name, f"dtype {node.dtype}, shape {node.shape}", "one short text" if most == 1 else long)
        if node.size is None or not 0 < node.size <= most:
            raise self.error(name, f"shape {node.shape}", "one short text" if most == 1 else f"1 to {most} texts")
        self._check_chunks(name, node)
        if variable:
            values = np.array([*self._variable_texts(name, node, longest), b""], dtype=object)[:-1].reshape(node.shape)
        else:
            values = np.asarray(node[()], dtype=object)
        decoded = np.empty(values.shape, dtype=object)
        for place, value in np.ndenumerate(values):
            try:
                decoded[place] = value.decode(encoding) if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError:
                raise self.error(name, repr(value)[:MAX_TEXT], f"{encoding.upper()} text") from None
        return decoded

    def _read(self, name: str, node: h5py.Dataset, most: int) -> npt.NDArray[Any]:
        if node.dtype.kind not in "iufb":
            raise self.error(name, f"dtype {node.dtype}", "numbers")
        stored = node.id.get_storage_size()
        if node.size is None or not 0 < node.size <= most:
            raise self.error(name, f"shape {node.shape}", f"1 to {most} values")
        self._check_chunks(name, node)
        if stored > self.file_size or node.size * node.dtype.itemsize > stored * MAX_COMPRESSION:
            raise self.error(
                name,
                f"shape {node.shape} claims more than the {stored} bytes stored in a file of {self.file_size}",
                remedy=_DAMAGED,
            )
        if node.size > self.left.values:
            raise self.error(name, f"shape {node.shape}", f"{self.left.most} values in all datasets of a file together")
        self.left.values -= node.size
        return np.asarray(node[()])

    def _variable_texts(self, name: str, node: h5py.Dataset, longest: int) -> list[bytes]:
        start, sizes = node.id.get_offset(), node.file.id.get_create_plist().get_sizes()
        if node.chunks is not None or start is None or sizes != (8, 8):
            raise self.error(name, "texts in chunks or inside a header", "texts as h5py and nir write them", _DAMAGED)
        with open(self.file, "rb") as stream:
            reader = TextReader(stream=stream, base=node.file.userblock_size, longest=longest, heaps=self.heaps)
            try:
                return reader.read(start, node.size)
            except DamagedTextError as error:
                raise self.error(name, str(error), f"texts of at most {longest} bytes", _DAMAGED) from error

    def _check_chunks(self, name: str, node: h5py.Dataset) -> None:
        # HDF5 (1.14) trusts these fields of a damaged header, and allocates without end or writes past its buffers.
        chunks = node.chunks
        if chunks is None:
            return
        if len(chunks) != node.ndim or math.prod(chunks) > MAX_VALUES:
            raise self.error(
                name, f"chunks of {chunks} for a shape of {node.shape}", "chunks of the same axes", _DAMAGED
            )
        pipeline = node.id.get_create_plist()
        filters = {pipeline.get_filter(index)[0] for index in range(pipeline.get_nfilters())}
        if not filters <= _FILTERS:
            raise self.error(
                name, f"HDF5 filters {sorted(filters)}", f"{sorted(_FILTERS)}", "write it without plug-ins"
            )

    def _dataset(self, name: str) -> h5py.Dataset:
        node = self._member(name)
        if not isinstance(node, h5py.Dataset):
            raise self.error(name, "a group", "a dataset")
        if node.is_virtual or node.external:
            raise self.error(name, "stored in another file", "data in the file itself", "copy it into one file")
        return node

    def _member(self, name: str) -> h5py.Group | h5py.Dataset:
        if name not in self:
            raise self.error(name, "is missing", remedy="the file is incomplete: write it again")
        if not isinstance(self.node.get(name, getlink=True), h5py.HardLink):
            raise self.error(name, "a soft or external link", "data in the file itself", "copy it into one file")
        return self.node[name]
