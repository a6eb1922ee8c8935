"""Classify images with a model.onnx that stars-deploy wrote, with NumPy and ONNX Runtime alone.

    python examples/onnx_inference.py model.onnx images.npz

The archive holds ``images``: floats, (samples, C, H, W), in the pixel range of the network's teacher; ``labels`` may
stand beside them. Everything else is in the model: how pixels become integers, the weights, the neurons, the
loop over time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the model on the images and print what it answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a model.onnx of a whole sequence (--onnx-mode sequence)")
    parser.add_argument("images", help="an .npz with `images`, and perhaps `labels`")
    parser.add_argument("--samples", type=int, default=8, help="how many images to show")
    options = parser.parse_args(arguments)
    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    about = read_metadata(session)
    if about.get("mode") != "sequence":
        parser.error(f"{options.model}: mode {about.get('mode')}, this example runs whole sequences")
    with np.load(options.images, allow_pickle=False) as archive:
        images = archive["images"][: options.samples]
        truth = archive["labels"][: options.samples] if "labels" in archive else None
    logits, potential, counts = session.run(
        ["logits", "potential", "spike_counts"], {about["source"]: prepare(images, about)}
    )
    describe(about)
    readout = potential if about["readout"] == "potential" else logits
    for index, chosen in enumerate(readout.argmax(axis=1)):
        name = about["labels"][chosen] if about["labels"] else str(chosen)
        right = "" if truth is None else f" (truth {truth[index]})"
        print(f"image {index}: class {chosen} {name}{right}")
        print(f"  logits {np.array2string(logits[index], precision=3, max_line_width=110)}")
        sums = ", ".join(f"{layer['name']} {n}" for layer, n in zip(about["layers"], counts[index].sum(0), strict=True))
        print(f"  spikes in {about['timesteps']} timesteps: {sums}")
    return 0


def read_metadata(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return what the model says about itself, JSON where it is JSON."""
    plain = ("schema", "schema_version", "mode", "source", "readout", "semantics")
    found = session.get_modelmeta().custom_metadata_map
    return {key: value if key in plain else json.loads(value) for key, value in found.items()}


def prepare(images: np.ndarray[Any, Any], about: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the images as the model takes them: float32 pixels, or integers for each timestep."""
    if about["source"] == "image":
        return images.astype(np.float32)
    given = about["input"]
    steps = np.rint(images.astype(np.float64) * given["scale"] + given["offset"]).clip(given["low"], given["high"])
    kind = np.uint8 if given["low"] >= 0 and given["high"] <= 255 else np.int32
    return np.repeat(steps[None].astype(kind), about["timesteps"], axis=0)


def describe(about: dict[str, Any]) -> None:
    """Print what network it is."""
    given = about["input"]
    rule = f"rint(pixel * {given['scale']} + {given['offset']})"
    print(f"T {about['timesteps']}, input {given['name']} {given['shape']}: {rule}")
    layers = ", ".join(f"{layer['name']} {layer['shape']}" for layer in about["layers"])
    print(f"layers: {layers}")
    print(f"classes by {about['readout']}; written by {about['versions']}")


if __name__ == "__main__":
    sys.exit(main())
