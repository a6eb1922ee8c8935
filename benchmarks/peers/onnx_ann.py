"""ONNX Runtime on the float ANN of a student's topology: convolution and ReLU where the student has neurons."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from timing import measure_runs

from peers.ann_weights import AnnWeights, load_ann, load_images

#: Oldest versions that know these operators, so that any runtime of the last years loads the model.
OPSET = 17
IR_VERSION = 8


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the ANN on normalised images, threads as requested."""
    ann = load_ann(request["folder"])
    images = ann.normalized(load_images(request))
    session = open_session(ann, request["threads"])
    figures = measure_runs(lambda: session.run(None, {"images": images}), len(images), request["seconds"], warm_up=2)
    logits = session.run(None, {"images": images[:8]})[0]
    return {**figures, "version": onnxruntime.__version__, "logits": logits.tolist()}


def open_session(ann: AnnWeights, threads: int) -> Any:
    """Return an inference session of the ANN on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    model = build_model(ann).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def build_model(ann: AnnWeights) -> onnx.ModelProto:
    """Return the ANN in ONNX's own operators, for any batch."""
    nodes, initializers, value = [], [], "images"
    for index, (weight, bias, stride) in enumerate(ann.convolutions):
        names = [f"conv{index}.weight", f"conv{index}.bias"]
        initializers += [_tensor(name, array) for name, array in zip(names, (weight, bias), strict=True)]
        nodes.append(
            helper.make_node("Conv", [value, *names], [f"conv{index}"], strides=[stride, stride], pads=[1, 1, 1, 1])
        )
        value = f"relu{index}"
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [value]))
    initializers += [_tensor("dense.weight", ann.dense[0]), _tensor("dense.bias", ann.dense[1])]
    nodes.append(helper.make_node("Flatten", [value], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        "ann",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *ann.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(ann.dense[1])])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _tensor(name: str, array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)
