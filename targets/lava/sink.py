"""Lava processes that write what a layer does to a file, step by step.

Lava's own ``Monitor`` keeps a float for each neuron and step and hands them back one by one, which takes minutes for
networks of ordinary size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class SpikeSink(AbstractProcess):  # type: ignore[misc]
    """Appends one bit for each neuron of ``s_in`` to `path` at every step, padded to whole bytes."""

    def __init__(self, *, shape: tuple[int, ...], path: str) -> None:
        super().__init__(shape=shape, path=path)
        self.s_in = InPort(shape=shape)


class StateSink(AbstractProcess):  # type: ignore[misc]
    """Appends the state variable that ``state`` refers to, as int32, to `path` after every step."""

    def __init__(self, *, shape: tuple[int, ...], path: str) -> None:
        super().__init__(shape=shape, path=path)
        self.state = RefPort(shape=shape)


class _Appending(PyLoihiProcessModel):  # type: ignore[misc]
    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self._path = Path(proc_params["path"])

    def _append(self, values: np.ndarray[Any, Any]) -> None:
        # Opened for each step: Lava ends its processes without giving them a chance to close files.
        with open(self._path, "ab") as stream:
            stream.write(np.ascontiguousarray(values).tobytes())


@implements(proc=SpikeSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeSink(_Appending):
    """Executes :class:`SpikeSink`."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        """Write this step's spikes."""
        self._append(np.packbits(self.s_in.recv().reshape(-1) != 0))


@implements(proc=StateSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyStateSink(_Appending):
    """Executes :class:`StateSink`."""

    state: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)

    def post_guard(self) -> bool:
        """Ask for the management phase, in which states may be read."""
        return True

    def run_post_mgmt(self) -> None:
        """Write the state after this step."""
        self._append(np.asarray(self.state.read()).astype(np.int32))
