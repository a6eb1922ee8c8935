"""Texts of any length in an HDF5 file, read without HDF5, which trusts what refers to them.

HDF5 1.14 allocates the length that a reference claims (up to 4 GiB) before it looks for the text, and never comes back
from a heap with an object of a bad size. The layout is that of the HDF5 file format specification, version 3: III.E
(global heap) and IV.A.2.d (variable-length datatypes); numbers are little-endian, addresses and lengths have 8 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

#: Length of the text, address of its heap, number of the object in there.
_REFERENCE = struct.Struct("<IQI")
#: Signature, version and size of a heap.
_HEAP = struct.Struct("<4sB3xQ")
#: Number, references and size of an object in a heap; its data follow, filled up to 8 bytes.
_OBJECT = struct.Struct("<HH4xQ")
#: Most objects in all heaps of a file: four times as many as the largest dataset has texts.
MAX_OBJECTS = 1 << 16


class DamagedTextError(ValueError):
    """A reference to a text that is not there."""


@dataclass(kw_only=True)
class Heaps:
    """The heaps of a file that were looked at: place and size of each object by number, by address; and their number.

    Each is looked at once, since a file may refer to a large heap from many datasets.
    """

    found: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    objects: int = 0


@dataclass(kw_only=True)
class TextReader:
    """Texts that the references of one dataset stand for.

    Parameters
    ----------
    stream : binary file
    base : int
        Where addresses count from [bytes].
    longest : int
        Most bytes of a text.
    heaps : Heaps
        Of this file.
    """

    stream: BinaryIO
    base: int
    longest: int
    heaps: Heaps

    def read(self, start: int, count: int) -> list[bytes]:
        """Return the texts of `count` references at `start`.

        Raises
        ------
        DamagedTextError
            If the file ends before, a text is longer than allowed, or not where its reference says.
        """
        references = self._bytes(start, count * _REFERENCE.size)
        return [self._text(*reference) for reference in _REFERENCE.iter_unpack(references)]

    def _text(self, length: int, address: int, number: int) -> bytes:
        if length > self.longest:
            raise DamagedTextError(f"a text of {length} bytes")
        if not length:
            return b""
        if address not in self.heaps.found:
            self.heaps.found[address] = self._heap(address)
        place, size = self.heaps.found[address].get(number, (0, -1))
        if size != length:
            raise DamagedTextError(f"a text of {length} bytes that is not where its reference says")
        return self._bytes(place, length)

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Return place and size of each object of the heap at `address`, by number."""
        begin = self.base + address
        signature, version, total = _HEAP.unpack(self._bytes(begin, _HEAP.size))
        if signature != b"GCOL" or version != 1:
            raise DamagedTextError("a reference to no heap of texts")
        objects: dict[int, tuple[int, int]] = {}
        place = _HEAP.size
        while place + _OBJECT.size <= total:
            number, _, size = _OBJECT.unpack(self._bytes(begin + place, _OBJECT.size))
            if not number:  # what is left is free
                break
            self.heaps.objects += 1
            if self.heaps.objects > MAX_OBJECTS:
                raise DamagedTextError(f"more than {MAX_OBJECTS} objects in heaps")
            place += _OBJECT.size
            objects[number] = (begin + place, size)
            place += -(-size // 8) * 8
        return objects

    def _bytes(self, start: int, count: int) -> bytes:
        if start >= 1 << 63:
            raise DamagedTextError("texts beyond the end of the file")
        self.stream.seek(start)
        found = self.stream.read(count)
        if len(found) != count:
            raise DamagedTextError("texts beyond the end of the file")
        return found
