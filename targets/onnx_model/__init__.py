"""``onnx``: the integer network as one model in ONNX's standard operators, executed by ONNX Runtime.

Opset 13 and file format 7, the oldest that have every operator used with the types needed (:mod:`.drawing`): any ONNX
Runtime of the last years loads the model; 1.19, 1.23 and 1.32 were tested. Weights are kept in
8 or 16 bits, state variables are int32 (int64 where a sum needs it), and everything is exact: which route each product
and decay takes is proven by bounds and was chosen by measurement (:mod:`.arithmetic`, :mod:`.synapses`).

Memory of the whole-sequence model grows with T times the samples of a batch: about 5 bytes (one int32, one uint8) for
each neuron and timestep of a population and what enters it, most of it freed as soon as the next population is done;
what an image alone drives is kept once, not T times. The one-step model keeps one timestep.
"""

from __future__ import annotations

from pathlib import Path

from stars_deploy.errors import TargetError
from stars_deploy.graph import SpikingGraph
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets.base import Availability, SpikeRecord
from stars_deploy.targets.onnx_model.outputs import SOURCES
from stars_deploy.targets.onnx_model.reader import OnnxFile, read_onnx
from stars_deploy.targets.onnx_model.runtime import OnnxNetwork, execute_onnx, find_runtime
from stars_deploy.targets.onnx_model.writer import MODES, write_onnx

__all__ = ["MODES", "SOURCES", "TARGET", "OnnxFile", "OnnxNetwork", "OnnxTarget", "read_onnx", "write_onnx"]


class OnnxTarget:
    """The model of a whole sequence, or of one timestep.

    Parameters
    ----------
    mode : str
        ``sequence``: T timesteps in one call; ``step``: one, with the state as inputs and outputs.
    source : str
        ``image``: float32 pixels, quantised in the model; ``payloads``: integers, for each timestep.

    Raises
    ------
    TargetError
        For another mode or source.
    """

    name = "onnx"
    filename = "model.onnx"
    summary = "ONNX model in standard operators (.onnx), executed by ONNX Runtime"

    def __init__(self, mode: str = "sequence", source: str = "image") -> None:
        for what, value, known in (("mode", mode, MODES), ("source", source, SOURCES)):
            if value not in known:
                raise TargetError(f"onnx {what}", repr(value), ", ".join(known), "choose one of them")
        self.mode, self.source = mode, source

    def availability(self) -> Availability:
        """Say whether ONNX Runtime is installed."""
        return find_runtime()

    def write(self, graph: QuantizedGraph, path: Path, origin: SpikingGraph | None = None) -> None:
        """Write `graph` to `path`; see :func:`~stars_deploy.targets.onnx_model.writer.write_onnx`."""
        write_onnx(graph, path, self.mode, self.source, origin)

    def read(self, path: Path, timesteps: int) -> QuantizedGraph:
        """Read `path` back, in whatever mode it is; see :func:`~stars_deploy.targets.onnx_model.reader.read_onnx`."""
        return read_onnx(path, timesteps).graph

    def execute(self, path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
        """Run the model in `path`; see :func:`~stars_deploy.targets.onnx_model.runtime.execute_onnx`."""
        return execute_onnx(path, images, timesteps)


TARGET = OnnxTarget()
