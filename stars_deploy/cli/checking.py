"""What can be said before anything is trained: ``check``."""

from __future__ import annotations

from typing import Annotated

import typer

from stars_deploy.cli.application import app
from stars_deploy.config import load_config
from stars_deploy.console import output, print_json
from stars_deploy.options import (
    Hardware,
    InputBits,
    InputShape,
    Json,
    Mean,
    Std,
    TrustWeights,
    Verbose,
    Version,
    Weights,
    reported,
    teacher_settings,
)


@app.command(epilog="Example: stars-deploy check vgg:64-128-256 --input-shape 3,32,32 --hardware loihi1")
def check(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="TEACHER_OR_MODEL",
            help="A teacher (digits, a .safetensors, package.module:factory, torchvision:NAME), a built or exported "
            "directory, a student.safetensors, or a .npz, .net, .onnx or .nir.",
        ),
    ],
    hardware: Hardware = "loihi2",
    weights: Weights = None,
    trust_weights: TrustWeights = False,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    student: Annotated[str | None, typer.Option(help="inherit (default), or vgg:16-32-64.")] = None,
    timesteps: Annotated[int | None, typer.Option(min=1, help="Timesteps, where a file does not say.")] = None,
    bits: Annotated[int | None, typer.Option(help="Weight bits of a teacher's student, 2 to 8 (default 8).")] = None,
    input_bits: InputBits = None,
    dt: Annotated[float | None, typer.Option(help="Seconds in a timestep of a .nir.")] = None,
    recurrent_delay: Annotated[int, typer.Option(min=0, help="Timesteps on loops of a .nir without a delay.")] = 0,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Map a network onto a chip before any training: what fits, what does not and why; exit 1 if it does not fit."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.checking import check_network
        from stars_deploy.pipeline.models import Reading
        from stars_deploy.pipeline.quantising import Importing

        overrides = {
            "teacher": teacher_settings(subject, weights, trust_weights, input_shape, mean, std),
            "student": {"spec": student}, "timesteps": timesteps, "bits": bits,
        }  # fmt: skip
        with bars.stage("check"):
            found = check_network(
                subject, hardware=hardware, timesteps=timesteps, config=load_config(None, overrides),
                reading=None if input_bits is None else Reading(input_bits=input_bits),
                importing=Importing(dt=dt, recurrent_delay=recurrent_delay),
            )  # fmt: skip
    if json:
        print_json(found.summary())
    else:
        from stars_deploy.pages import print_check

        print_check(output(), found.summary())
    if not found.fits:
        raise typer.Exit(1)
