"""Files that are damaged, hostile, or hold what stars-deploy would not have written."""

from __future__ import annotations

import json
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import changed, written

from stars_deploy.errors import ArtifactError, FormatError
from stars_deploy.targets.onnx_model import TARGET, read_onnx
from stars_deploy.targets.onnx_model import runtime as onnx_runtime


@pytest.fixture
def path(tmp_path, small_chain):
    TARGET.write(small_chain, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def find_node(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


def set_metadata(key, value):
    def change(model):
        entry = next(entry for entry in model.metadata_props if entry.key == key)
        entry.value = value if isinstance(value, str) else json.dumps(value(json.loads(entry.value)))

    return change


def add_node(model):
    model.graph.node.append(helper.make_node("Identity", ["image"], ["copied"], name="spy"))


def change_attribute(model):
    find_node(model, "Transpose").attribute[0].ints[:] = [0, 1, 2, 3]


def change_operator(model):
    find_node(model, "MatMulInteger").op_type = "MatMul"


def change_body(model):
    scan = find_node(model, "Scan")
    body = next(item.g for item in scan.attribute if item.name == "body")
    next(node for node in body.node if node.op_type == "Greater").op_type = "GreaterOrEqual"


def change_weight(model):
    tensor = next(item for item in model.graph.initializer if item.name.startswith("weight:"))
    tensor.name = "weight:0:other"


def change_constant(model):
    tensor = next(item for item in model.graph.initializer if item.name == "constant:3")
    tensor.raw_data = bytes(len(tensor.raw_data) - 1) + b"\x01"


def add_tensor(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "stowaway"))


def add_domain(model):
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def add_function(model):
    function = helper.make_function("com.example", "F", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [])
    model.functions.append(function)


def go_outside(model):
    tensor = next(item for item in model.graph.initializer if item.name.startswith("weight:"))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def claim_more(model):
    tensor = next(item for item in model.graph.initializer if item.name.startswith("weight:"))
    tensor.dims[:] = [1 << 40, 1 << 20]


def claim_negative(model):
    tensor = next(item for item in model.graph.initializer if item.name.startswith("weight:"))
    tensor.dims[0] = -tensor.dims[0]


def unknown_type(model):
    model.graph.initializer[0].data_type = 999


def swap_output(model):
    model.graph.output[0].name = "potential"


def huge_layer(layers):
    layers[0]["shape"] = [1 << 20, 1 << 20, 4]
    return layers


def fewer(layers):
    return layers[:-1]


def padded(projections):
    projections[0]["padding"] = [1 << 30, 1 << 30]
    return projections


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (add_node, "node Identity 'spy', which does not belong"),
        (change_attribute, "node .* Transpose '.*with other content"),
        (change_operator, "node .* MatMul '.*where MatMulInteger"),
        (change_body, "in its loop: node .* GreaterOrEqual"),
        (change_weight, "no tensor 'weight:0:conv0.w'"),
        (change_constant, "tensor .* 'constant:3'"),
        (add_tensor, "tensor 'stowaway', which does not belong"),
        (add_domain, "opsets"),
        (add_function, "something beside its graph"),
        (go_outside, "weight:.*another file"),
        (claim_more, "weight:.*bytes claimed"),
        (claim_negative, "bytes claimed"),
        (unknown_type, "of type 999"),
        (swap_output, "output 0 'potential'"),
        (set_metadata("schema", "other"), "schema 'other'"),
        (set_metadata("schema_version", "99"), "version '99'"),
        (set_metadata("mode", "dream"), "mode 'dream'"),
        (set_metadata("layers", "[" * 100_000), "damaged description"),
        (set_metadata("layers", "{}"), "no list of layers"),
        (set_metadata("layers", huge_layer), "too many neurons"),
        (set_metadata("layers", fewer), "impossible network|damaged description"),
        (set_metadata("projections", padded), "m.onnx: "),
        (set_metadata("timesteps", lambda _: 1 << 20), "1048576 timesteps"),
        (set_metadata("timesteps", lambda _: -3), "-3 in its description"),
        (set_metadata("timesteps", lambda _: "4"), "'4' in its description"),
        (set_metadata("labels", lambda _: [1, 2]), "in its description"),
        (set_metadata("input", lambda given: {**given, "scale": "a"}), "damaged description"),
        (set_metadata("semantics", "anything goes"), "metadata 'semantics'"),
        (set_metadata("outputs", "{}"), "metadata 'outputs'"),
        (lambda model: model.metadata_props.pop(), "damaged description|metadata"),
        (lambda model: model.metadata_props.add(key="x", value="y"), "entries of metadata"),
        (lambda model: setattr(model, "doc_string", "hello"), "doc_string"),
        (lambda model: setattr(model.graph, "doc_string", "hello"), "something beside"),
    ],
)
def test_what_does_not_belong_is_refused_by_name(path, change, named):
    changed(path, change)
    start = time.monotonic()
    with pytest.raises(FormatError, match=named):
        TARGET.read(path, 4)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_truncated_files(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FormatError):
        TARGET.read(path, 4)


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 50, bytes(1000), b"\x89HDF\r\n\x1a\n" + bytes(100), b"\xff" * 64]
)
def test_files_of_another_kind(path, content):
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.onnx"):
        TARGET.read(path, 4)


def test_damaged_bytes_are_never_run(path):
    """One byte changed anywhere: refused, or nothing that matters (the version that wrote it)."""
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        place, flip = int(rng.integers(len(content))), int(rng.integers(1, 256))
        path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
        try:
            TARGET.read(path, 4)
        except FormatError:
            refused += 1
    assert refused > 0


def test_missing_and_too_large_files(tmp_path, monkeypatch, path):
    with pytest.raises(ArtifactError, match="does not exist"):
        TARGET.read(tmp_path / "none.onnx", 4)
    monkeypatch.setattr("stars_deploy.targets.onnx_model.reader.MAX_BYTES", 1000)
    with pytest.raises(FormatError, match="at most 1000"):
        TARGET.read(path, 4)


def test_a_model_of_others(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])], "g",
        [helper.make_tensor_value_info("a", 1, [1])], [helper.make_tensor_value_info("b", 1, [1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(FormatError, match="schema 'None'"):
        TARGET.read(tmp_path / "m.onnx", 4)


def test_outputs_that_contradict_the_spikes_are_found(path, small_chain, make_images, monkeypatch):
    """What the file answers is compared with what happens inside it."""
    images = make_images(small_chain, 2)
    TARGET.execute(path, images, 4)
    honest = read_onnx(path)

    def twisted(kind, place):
        def read(*_):
            model = onnx.ModelProto()
            model.CopyFrom(honest.model)
            node = next(item for item in model.graph.node if place in item.output)
            kind(node)
            return onnx_runtime.OnnxFile(graph=honest.graph, model=model, mode="sequence", source="image")

        monkeypatch.setattr(onnx_runtime, "read_onnx", read)

    twisted(lambda node: node.input.__setitem__(0, "potential"), "logits")
    with pytest.raises(FormatError, match="logits that contradict"):
        TARGET.execute(path, images, 4)
    counts = next(item for item in honest.model.graph.node if item.op_type == "Concat" and "outputs" in item.name)
    twisted(lambda node: node.input.__setitem__(0, node.input[1]), counts.output[0])
    with pytest.raises(FormatError, match="spike counts that contradict"):
        TARGET.execute(path, images, 4)


def test_step_models_are_read_too(tmp_path, small_chain):
    written(small_chain, tmp_path / "m.onnx", "step", "payloads")
    changed(tmp_path / "m.onnx", add_node)
    with pytest.raises(FormatError, match="'spy'"):
        TARGET.read(tmp_path / "m.onnx", 4)
