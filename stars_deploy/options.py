"""Options that several commands share, and how a command ends: a result, or a message and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from stars_deploy import __version__
from stars_deploy.artifacts import FULL_DISK
from stars_deploy.console import LOG, ProgressBars, print_error
from stars_deploy.errors import ArtifactError, ConfigError, StarsDeployError


def _print_version(asked: bool) -> None:
    if asked:
        print(f"stars-deploy {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, nothing else.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show the traceback of an error.")]
Data = Annotated[str | None, typer.Option("--dataset", "--data", help="Evaluation set: digits, fashion-mnist, "
                 "mnist, kmnist, cifar10, cifar100, folder, or a file .npz.")]  # fmt: skip
Root = Annotated[str | None, typer.Option(help="Folder of the data set; nothing is downloaded.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first images of the evaluation set.")]
Hardware = Annotated[str, typer.Option(help="Chip profile: loihi1, loihi2, or a YAML file.")]

Weights = Annotated[str | None, typer.Option(help="Weights: .safetensors, or a torch state dict.")]
TrustWeights = Annotated[bool, typer.Option("--trust-weights", help="Load a torch file on torch before 2.6.")]
InputShape = Annotated[str | None, typer.Option(help="channels,height,width of the teacher's input.")]
Mean = Annotated[str | None, typer.Option(help="Input normalisation, one value a channel.")]
Std = Annotated[str | None, typer.Option(help="Input normalisation, one value a channel.")]

Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the fast engine (default all processors).")]
Memory = Annotated[str, typer.Option(help="Most memory for a run of the fast engine, such as 500MB or 2GiB.")]
InputBits = Annotated[int | None, typer.Option(help="Bits of a .net's input messages; 1 for spikes (default 8).")]
OnnxMode = Annotated[str | None, typer.Option(help="Of --target onnx: sequence (all timesteps in one call) or step "
                     "(one timestep a call, state in and out).")]  # fmt: skip
OnnxInput = Annotated[str | None, typer.Option(help="Of --target onnx: image (floats, quantised inside), payloads "
                      "(integers, a frame for each timestep) or auto (payloads for spikes).")]  # fmt: skip
Timing = Annotated[
    str | None,
    typer.Option(
        help="Of a .net: synchronous (a layer answers in the same timestep; Lava with a reset for each sample) or "
        "pipelined (each layer lags by one; Lava without)."
    ),
]
ResetInterval = Annotated[int, typer.Option(min=0, help="Lava's reset_interval, with --timing pipelined (0: never).")]
ResetOffset = Annotated[int, typer.Option(min=0, help="Lava's reset_offset, with --timing pipelined.")]


def teacher_settings(
    spec: str | None, weights: str | None, trust: bool, input_shape: str | None, mean: str | None, std: str | None
) -> dict[str, Any]:
    """Return the ``teacher`` section of the settings from its options; what was not given is None."""
    return {
        "spec": spec, "weights": weights, "trust_weights": trust or None,
        "input_shape": numbers(input_shape, "--input-shape", int),
        "mean": numbers(mean, "--mean", float), "std": numbers(std, "--std", float),
    }  # fmt: skip


@contextmanager
def reported(as_json: bool, verbose: bool) -> Iterator[ProgressBars]:
    """Run a command with progress bars, and end it with a message and an exit code instead of a traceback."""
    try:
        with ProgressBars().shown() as bars:
            yield bars
    except StarsDeployError as error:
        if verbose:
            LOG.print_exception()
        print_error(error, as_json)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:  # of libraries: what this package writes says so itself
        if error.errno not in FULL_DISK:
            raise
        full = ArtifactError(str(error.filename or "a file"), f"could not be written ({error.strerror})",
                             remedy="free some space and run again")  # fmt: skip
        print_error(full, as_json)
        raise typer.Exit(full.exit_code) from error
    except KeyboardInterrupt as error:
        stopped = StarsDeployError(
            "interrupted", "stopped by the user", "",
            "nothing half-written was left; go on with the same command (a build: with --resume)",
        )  # fmt: skip
        print_error(stopped, as_json)
        raise typer.Exit(stopped.exit_code) from error


def numbers(text: str | None, option: str, kind: Callable[[str], Any]) -> tuple[Any, ...] | None:
    """Return the numbers of a text such as ``1,28,28``; None for None."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(option, text, "numbers with commas between them, for example 1,28,28") from error


def size(text: str, option: str) -> int:
    """Return the bytes of a text such as ``500MB`` or ``2GiB``."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise ConfigError(option, text, "a number of bytes, such as 500MB or 2GiB") from error
