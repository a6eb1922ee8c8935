"""Artefacts: written for each target, read back, executed, and compared with the integers that they should hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stars_deploy.config import OnnxConfig
from stars_deploy.errors import ConfigError, VerificationError
from stars_deploy.graph import SpikingGraph
from stars_deploy.pipeline.models import Model, evaluation_set, open_model
from stars_deploy.pipeline.samples import Samples, distinct_samples, takes_spikes
from stars_deploy.progress import Observer
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets import TARGETS, find_target
from stars_deploy.targets.base import Target
from stars_deploy.verification import Verification, verify_target


def write_targets(
    graph: QuantizedGraph,
    folder: Path,
    targets: Sequence[str],
    *,
    origin: SpikingGraph | None = None,
    onnx: OnnxConfig | None = None,
) -> list[Path]:
    """Write `graph` for each target into `folder`; return the files, each once.

    Parameters
    ----------
    graph : QuantizedGraph
    folder : Path
    targets : sequence of str
    origin : SpikingGraph, optional
        The float graph that `graph` was rounded from.
    onnx : OnnxConfig, optional
        How the ``onnx`` target writes.
    """
    written: list[Path] = []
    for name in targets:
        target = _writer(name, graph, onnx or OnnxConfig())
        path = folder / target.filename
        if path not in written:
            target.write(graph, path, origin)
            written.append(path)
    return written


def _writer(name: str, graph: QuantizedGraph, onnx: OnnxConfig) -> Target:
    if name != "onnx":
        return find_target(name)
    from stars_deploy.targets.onnx_model import OnnxTarget  # loads ONNX

    source = onnx.input if onnx.input != "auto" else "payloads" if takes_spikes(graph) else "image"
    return OnnxTarget(mode=onnx.mode, source=source)


def verify_targets(
    graph: QuantizedGraph, folder: Path, targets: Sequence[str], samples: Samples, observer: Observer
) -> list[Verification]:
    """Verify each target's file in `folder`; the file of ``lava`` as ``netx`` too, because that needs no runtime.

    A target that cannot run here is in the result with the reason.
    """
    names = list(dict.fromkeys([*(["netx"] if "lava" in targets else []), *targets]))
    results: list[Verification] = []
    for name in names:
        observer.advanced(len(results), len(names), name)
        result = verify_target(graph, name, folder / find_target(name).filename, time_first(graph, samples))
        if not result.ran:
            observer.noted(f"{name} was not run: {result.reason}")
        results.append(result)
    return results


def time_first(graph: QuantizedGraph, samples: Samples) -> IntArray:
    """Return quantised samples as engines take them: (N, *shape) or (T, N, *shape)."""
    images: IntArray = samples.images
    return images.swapaxes(0, 1) if graph.input.over_time(images) else images


def verify_model(
    path: str | Path,
    against: Sequence[str] | None = None,
    *,
    data: str | None = None,
    root: str | None = None,
    samples: int = 16,
    observer: Observer | None = None,
) -> list[Verification]:
    """Read back a model's artefacts, execute them and compare every spike with the reference.

    Parameters
    ----------
    path : path
        A built or exported directory (its ``model.npz`` is the truth), or a ``.net``, ``.onnx`` or ``.nir`` file.
    against : sequence of str, optional
        Targets; by default all that have an artefact there and can run here.
    data, root : str, optional
        Evaluation set to take the samples from.
    samples : int
        Distinct images, at least 2.
    observer : Observer, optional

    Returns
    -------
    list of Verification
        Give it to :func:`stars_deploy.verification.check_verified` to refuse differences.

    Raises
    ------
    ConfigError
        If there is no artefact to verify.
    VerificationError
        If a target asked for by name cannot run here: nothing was verified.
    """
    watch = observer or Observer()
    if samples < 2:
        raise ConfigError("--samples", samples, "at least 2")
    model = open_model(path)
    artefacts = _artefacts(model, against)
    images = time_first(model.graph, distinct_samples(model, evaluation_set(model, data, root, None), samples))
    results = []
    with watch.stage("verify"):
        for index, (name, file) in enumerate(artefacts.items()):
            watch.advanced(index, len(artefacts), name)
            result = verify_target(model.graph, name, file, images)
            if not result.ran:
                raise VerificationError(name, f"could not run ({result.reason})", "a target that runs here")
            results.append(result)
    return results


def _artefacts(model: Model, against: Sequence[str] | None) -> dict[str, Path]:
    """Return the file of each target that is to be verified."""
    found: dict[str, Path] = {}
    for name in TARGETS if against is None else against:
        file = model.artefact(name)
        if against is None:
            if file is not None and file.is_file() and find_target(name).availability().ok:
                found[name] = file
        elif file is None:
            raise ConfigError(f"--against {name}", f"{model.file} is of another format", "a target of that format",
                              f"`stars-deploy export {model.file} --target {name}` writes and verifies it")  # fmt: skip
        else:
            found[name] = file
    if not found:
        raise ConfigError(
            str(model.file.parent), "holds no artefact to verify", ", ".join(TARGETS), "export it with --target"
        )
    return found
