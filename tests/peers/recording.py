"""What every peer's generator needs: seeded weights and images, and a record of what each layer passed on.

Runs inside a peer's own environment (torch, numpy and nir only), never in that of stars-deploy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

#: Distinct samples of each record.
SAMPLES = 3


def fill(net: torch.nn.Module, seed: int, gain: float = 1.0, bias: float = 0.1) -> None:
    """Draw each weight and bias of `net`; NumPy, not torch, so that every version of torch gives the same file."""
    rng = np.random.default_rng(seed)
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter):
            fan_in = int(np.prod(weight.shape[1:]))
            weight.data = _float32(rng.normal(0.5 * gain / fan_in, gain / np.sqrt(fan_in), tuple(weight.shape)))
            if module.bias is not None:
                module.bias.data = _float32(rng.normal(0, bias, tuple(module.bias.shape)))


def images_for(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return images (B, *shape) in [0, 1)."""
    return _float32(np.random.default_rng(seed).random((SAMPLES, *shape)))


def record(
    net: torch.nn.Module, step: Callable[[], torch.Tensor], layers: Iterable[str], timesteps: int
) -> dict[str, np.ndarray]:
    """Call `step` for each timestep; return what each of `layers` and the network passed on, (T, B, *shape)."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    modules = dict(net.named_modules())
    hooks = [modules[name].register_forward_hook(_keep(seen[name])) for name in seen]
    outputs = []
    with torch.no_grad():
        for _ in range(timesteps):
            outputs.append(step().numpy())
    for hook in hooks:
        hook.remove()
    return {**{name: np.stack(steps) for name, steps in seen.items()}, "output": np.stack(outputs)}


def save(path: Path, images: torch.Tensor, values: dict[str, np.ndarray]) -> None:
    """Write ``images`` and one array ``spikes.NAME`` for each recorded layer (uint8 where it is spikes)."""
    arrays = {"images": images.numpy()}
    for name, array in values.items():
        whole = np.array_equal(array, array.astype(np.uint8))
        arrays[f"spikes.{name}"] = array.astype(np.uint8) if whole else array.astype(np.float32)
    np.savez_compressed(path, **arrays)
    rates = {name: round(float(array.mean()), 3) for name, array in values.items()}
    print(path.name, "mean of each layer's output:", rates)


def _keep(steps: list[np.ndarray]) -> Callable[..., None]:
    def hook(_: torch.nn.Module, __: object, output: object) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        assert isinstance(spikes, torch.Tensor)
        steps.append(spikes.detach().numpy().copy())

    return hook


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
