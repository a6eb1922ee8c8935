"""Run a network that a peer's import function made, and record what every module passes on at every timestep.

Runs inside a peer's own environment (torch and numpy only), never in that of stars-deploy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

#: Makes the network from the file and the length of a timestep [s].
Load = Callable[[str, float], torch.nn.Module]
#: Advances the network by one timestep: (network, input, state) to (output, state); the first state is None.
Step = Callable[[torch.nn.Module, torch.Tensor, object], tuple[torch.Tensor, object]]


def main(load: Load, step: Step, batched: bool) -> None:
    """Read ``FILE.nir INPUT.npz OUT.npz`` of the command line, once or more often.

    INPUT has ``images`` (B, *shape), ``timesteps`` and ``dt`` [s]. OUT gets one array (T, B, *shape) for each module,
    by its name in the network, and ``output`` (B, K), the sum of what the network returned over time; or ``error``,
    what the tool said instead. Without `batched` the samples run one by one without a batch axis, which is what an
    import needs that takes NIR's Flatten (whose axes do not count the batch) as torch's (whose axes do).
    """
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    failed = False
    for first in range(0, len(arguments), 3):
        file, given, out = arguments[first : first + 3]
        try:
            values = _record(load, step, batched, file, dict(np.load(given)))
        except Exception as error:  # whatever a tool raises is its answer
            values = {"error": np.array(f"{type(error).__name__}: {error}")}
            print(f"{file}: {values['error']}", file=sys.stderr)
            failed = True
        np.savez_compressed(Path(out), **values)
    sys.exit(1 if failed else 0)


def _record(load: Load, step: Step, batched: bool, file: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images = torch.from_numpy(given["images"].astype(np.float32))
    groups = [images] if batched else list(images)
    runs = [_run(load(file, float(given["dt"])), step, group, int(given["timesteps"])) for group in groups]
    values = runs[0] if batched else {name: np.stack([run[name] for run in runs], 1) for name in runs[0]}
    values["output"] = values.pop("returned").sum(0)
    return values


def _run(net: torch.nn.Module, step: Step, given: torch.Tensor, timesteps: int) -> dict[str, np.ndarray]:
    seen: dict[str, list[np.ndarray]] = {name: [] for name, _ in net.named_children()}
    for name, module in net.named_children():
        module.register_forward_hook(_keep(seen[name]))
    returned = []
    state: object = None
    with torch.no_grad():
        for _ in range(timesteps):
            output, state = step(net, given, state)
            returned.append(output.numpy().copy())
    stacked = {name: np.stack(steps) for name, steps in seen.items() if steps}
    return {**stacked, "returned": np.stack(returned)}


def _keep(steps: list[np.ndarray]) -> Callable[..., None]:
    def hook(_: torch.nn.Module, __: object, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        assert isinstance(value, torch.Tensor)
        steps.append(value.detach().numpy().copy())

    return hook
