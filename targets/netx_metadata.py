"""What stars-deploy wrote beside the layers of a NetX file, or what stands for it in a stranger's file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from stars_deploy.populations import BIAS_BITS
from stars_deploy.precision import Precision
from stars_deploy.targets.hdf5_guard import GuardedGroup
from stars_deploy.targets.netx_writer import METADATA, SCHEMA, SCHEMA_VERSION

MAX_TIMESTEPS = 1 << 16
#: Longest description [bytes]; a thousand layers and ten thousand labels need less.
MAX_METADATA = 1 << 22
#: NetX's transform of an image into biases, where a file has none (``hdf5.Network.create_input``).
DEFAULT_WEIGHT, DEFAULT_BIAS = 64, 0


class Metadata:
    """Names, scales, precisions, timesteps and labels.

    Parameters
    ----------
    root : GuardedGroup
        The file.

    Raises
    ------
    FormatError
        If there is a description that is not ours, or is damaged.
    """

    def __init__(self, root: GuardedGroup) -> None:
        self._root = root
        self._content: dict[str, Any] = {}
        if METADATA in root:
            self._content = json.loads(bytes(root.numbers(METADATA, MAX_METADATA).astype(np.uint8)).decode())
            found = (self._content.get("schema"), self._content.get("version"))
            if found != (SCHEMA, SCHEMA_VERSION):
                raise root.error(METADATA, f"schema {found}", f"{(SCHEMA, SCHEMA_VERSION)}", "build it again")

    @property
    def present(self) -> bool:
        """Whether stars-deploy wrote the file."""
        return bool(self._content)

    @property
    def timesteps(self) -> int | None:
        """Timesteps for one inference, if the file says so."""
        if not self._content:
            return None
        timesteps = self._value(self._content, "timesteps", int)
        if not 1 <= timesteps <= MAX_TIMESTEPS:
            raise self._root.error(METADATA, f"{timesteps} timesteps", f"1 to {MAX_TIMESTEPS}")
        return int(timesteps)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""
        labels = self._value(self._content, "labels", list) if self._content else []
        if not all(isinstance(label, str) for label in labels):
            raise self._root.error(METADATA, "labels that are not text", "text")
        return tuple(labels)

    def spikes(self, bits: int) -> dict[str, Any]:
        """Return the name, scale, offset and precision of an input of spikes, of `bits` where the file does not say."""
        if not self._content:
            precision = Precision(bits=bits, signed=False)
            return {"name": "input", "scale": float(precision.high), "precision": precision}
        return self._described_input(biases=False)

    def biases(self, weight: int, bias: int) -> dict[str, Any]:
        """Return the name, scale, offset and precision of an input that biases the first population.

        Parameters
        ----------
        weight, bias : int
            The file's own transform [LSB].
        """
        if not self._content:
            precision = Precision(bits=BIAS_BITS, signed=True)
            return {"name": "image", "scale": float(weight), "offset": float(bias), "precision": precision}
        described = self._described_input(biases=True)
        if (described["scale"], described["offset"]) != (weight, bias):
            got = f"scale {described['scale']:g} and offset {described['offset']:g} of the input"
            raise self._root.error(METADATA, got, f"{weight} and {bias}, as in layer/0", "build it again")
        return described

    def layer(self, index: int, number: int, kind: str) -> dict[str, Any]:
        """Return the names, scale and precisions of layer `index`, the `number`-th of those with synapses."""
        if not self._content:
            name = f"{kind}{number}" if number else kind
            projection, recurrent = f"{name}.weight", f"{name}.weight_rec"
            fields = {"precision": None, "recurrent": recurrent, "recurrent_precision": None}
            return {"population": name, "scale": 1.0, "projection": projection, **fields}
        layers = self._value(self._content, "layers", list)
        if index >= len(layers):
            raise self._root.error(METADATA, f"describes {len(layers)} layers", "as many as the file holds")
        described = layers[index]
        names = {"population": self._value(described, "population", str), "scale": self._scale(described, "scale")}
        if not number:
            return names
        names["projection"] = self._value(described, "projection", str)
        names["precision"] = self._precision(described)
        if kind == "dense_rec":
            recurrent = self._value(described, "recurrent", dict)
            names["recurrent"] = self._value(recurrent, "projection", str)
            names["recurrent_precision"] = self._precision(recurrent)
        return names

    def check_length(self, layers: int) -> None:
        """Refuse a description of more layers than the file holds."""
        if self._content and len(self._value(self._content, "layers", list)) != layers:
            raise self._root.error(METADATA, f"describes another number of layers than {layers}", f"{layers}")

    def _described_input(self, biases: bool) -> dict[str, Any]:
        described = {"offset": 0.0, "biases": False, **self._value(self._content, "input", dict)}
        if self._value(described, "biases", bool) != biases:
            got = "an input that biases neurons" if described["biases"] else "an input of spikes"
            raise self._root.error(METADATA, got, "the same as in layer/0", "build it again")
        return {
            "name": self._value(described, "name", str),
            "scale": self._scale(described, "scale"),
            "offset": self._scale(described, "offset"),
            "precision": self._precision(described),
        }

    def _precision(self, described: dict[str, Any]) -> Precision:
        fields = self._value(described, "precision", dict)
        kinds = {"bits": int, "signed": bool, "exponent": int, "rounding": str}
        return Precision(**{name: self._value(fields, name, kind) for name, kind in kinds.items()})

    def _scale(self, described: dict[str, Any], name: str) -> float:
        scale = float(self._value(described, name, float))
        if not np.isfinite(scale):
            raise self._root.error(METADATA, f"{name} {scale}", "a finite number")
        return scale

    def _value(self, described: dict[str, Any], name: str, kind: type) -> Any:
        value = described.get(name)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self._root.error(METADATA, f"{name} = {repr(value)[:80]}", f"{kind.__name__}", "build it again")
        return value
