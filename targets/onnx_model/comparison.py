"""The first difference between a model that was read and the one that stars-deploy would have written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import GraphProto, ModelProto


def find_deviation(found: ModelProto, expected: ModelProto) -> str:
    """Return what is in `found` and not in `expected`, or the other way round, by name; empty if nothing is."""
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if getattr(found, field) != getattr(expected, field):
            return f"{field} {str(getattr(found, field))[:80]!r}"
    if list(map(_bytes, found.opset_import)) != list(map(_bytes, expected.opset_import)):
        return f"opsets {[(item.domain[:40], item.version) for item in found.opset_import][:5]}"
    if deviation := _deviating_metadata(found, expected):
        return deviation
    if deviation := _deviating_graph(found.graph, expected.graph):
        return deviation
    return "" if _bytes(found) == _bytes(expected) else "something beside its graph"


def _deviating_metadata(found: ModelProto, expected: ModelProto) -> str:
    one, other = ([(entry.key, entry.value) for entry in model.metadata_props] for model in (found, expected))
    for got, wanted in zip(one, other, strict=False):
        if got != wanted:
            return f"metadata {got[0][:80]!r}"
    return "" if len(one) == len(other) else f"{len(one)} entries of metadata in place of {len(other)}"


def _deviating_graph(found: GraphProto, expected: GraphProto) -> str:
    parts = (("node", "node"), ("initializer", "tensor"), ("input", "input"), ("output", "output"))
    for field, word in parts:
        deviation = _deviating_item(getattr(found, field), getattr(expected, field), word)
        if deviation:
            return deviation
    return "" if _bytes(found) == _bytes(expected) else "something beside nodes and tensors in its graph"


def _deviating_item(found: Sequence[Any], expected: Sequence[Any], word: str) -> str:
    for index, (got, wanted) in enumerate(zip(found, expected, strict=False)):
        if _bytes(got) != _bytes(wanted):
            return f"{word} {index} {_label(got)}, where {_label(wanted)} belongs" + _inner(got, wanted)
    if len(found) > len(expected):
        return f"{word} {_label(found[len(expected)])}, which does not belong"
    return f"no {word} {_label(expected[len(found)])}" if len(found) < len(expected) else ""


def _inner(got: Any, wanted: Any) -> str:
    """Return where the bodies of two loops differ, if that is what does."""
    bodies = [[item.g for item in getattr(node, "attribute", ()) if item.HasField("g")][:1] for node in (got, wanted)]
    if not bodies[0] or not bodies[1]:
        return " (with other content)" if _label(got) == _label(wanted) else ""
    deviation = _deviating_graph(bodies[0][0], bodies[1][0])
    return f" (in its loop: {deviation})" if deviation else " (with other content)"


def _label(item: Any) -> str:
    kind = f"{item.op_type[:40]} " if hasattr(item, "op_type") else ""
    return f"{kind}{item.name[:120]!r}"


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content
