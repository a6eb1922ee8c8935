"""A Lava process that shows images to a NetX input layer with neurons, whose biases the pixels are."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class BiasSource(AbstractProcess):  # type: ignore[misc]
    """Sets the variable that ``bias`` refers to, before each step but the first, to that step's frame.

    Parameters
    ----------
    frames : array of int, (steps, *shape of the variable)
        The first is what the variable must hold from the start; after the last it keeps that one.
    """

    def __init__(self, *, frames: np.ndarray[Any, Any]) -> None:
        super().__init__(frames=frames)
        self.bias = RefPort(shape=frames.shape[1:])


@implements(proc=BiasSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyBiasSource(PyLoihiProcessModel):  # type: ignore[misc]
    """Executes :class:`BiasSource`."""

    bias: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self._frames = np.asarray(proc_params["frames"], np.int32)

    def post_guard(self) -> bool:
        """Ask for the management phase, in which variables may be set, while a frame is left."""
        return bool(self.time_step < len(self._frames))

    def run_post_mgmt(self) -> None:
        """Write the frame of the next step (steps count from 1)."""
        self.bias.write(np.ascontiguousarray(self._frames[self.time_step]))
        self.bias.wait()  # else the neurons may begin the next step first, and take the frame one step too late
