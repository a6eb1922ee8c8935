"""What makes something: ``build``, ``export``, ``teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stars_deploy.cli.application import app
from stars_deploy.config import BuildConfig, OnnxConfig, load_config, load_section
from stars_deploy.console import output, print_json
from stars_deploy.options import (
    Data,
    InputShape,
    Json,
    Limit,
    Mean,
    OnnxInput,
    OnnxMode,
    Root,
    Std,
    TrustWeights,
    Verbose,
    Version,
    Weights,
    numbers,
    reported,
    teacher_settings,
)


@app.command(epilog="Example: stars-deploy build --teacher runs/teacher.safetensors --dataset fashion-mnist "
             "--root DATA --target lava --out runs/fashion")  # fmt: skip
def build(
    target: Annotated[list[str] | None, typer.Option(help="lava, netx, onnx, nir. Repeat for several.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="digits, vgg:16-32-64, package.module:factory, "
            "file.py:factory, torchvision:NAME, or a .safetensors of `stars-deploy teacher`."
        ),
    ] = None,
    weights: Weights = None,
    trust_weights: TrustWeights = False,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    student: Annotated[str | None, typer.Option(help="inherit, or vgg:16-32-64.")] = None,
    dataset: Data = None,
    root: Root = None,
    limit: Limit = None,
    method: Annotated[
        str | None, typer.Option(help="stars, bn, rca, tar or a YAML file: the objectives of synthesis.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="fast, dfq, cmi, deepinversion, noise or installed: how images are made.")
    ] = None,
    timesteps: Annotated[int | None, typer.Option(help="Timesteps for one inference (T) (default 4).")] = None,
    bits: Annotated[int | None, typer.Option(help="Weight bits, 2 to 8 (default 8).")] = None,
    decay: Annotated[float | None, typer.Option(help="Potential left after a timestep (default 0.9).")] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="Surrogate gradient: triangle, super, tanh, circ or heavi_erfc.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Distillation steps (default 400).")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for the distillation, such as 90s or 10m, in place of --steps.")
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard/--no-tensorboard", help="Log for TensorBoard as well."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to distil: cpu or cuda (default cpu).")] = None,
    onnx_mode: OnnxMode = None,
    onnx_input: OnnxInput = None,
    hardware: Annotated[str | None, typer.Option(help="loihi1, loihi2 or a YAML profile.")] = None,
    measure_cpu: Annotated[
        bool | None,
        typer.Option(help="Time the teacher in ONNX Runtime on this processor, about 3 s (default: measure)."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML settings; options win over them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default runs/TEACHER-METHOD-tT).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random (default 0).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch (default all cores).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted build.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a build of other settings.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Distil, quantise, write, verify, simulate and report: the main job. Default: the digits teacher that ships."""
    with reported(json, verbose) as bars:
        overrides = {
            "teacher": teacher_settings(teacher, weights, trust_weights, input_shape, mean, std),
            "data": {"name": dataset, "root": root, "limit": limit},
            "student": {"spec": student, "decay": decay, "surrogate": surrogate},
            "distill": {"steps": steps, "budget": budget, "tensorboard": tensorboard},
            "synthesis": {"backbone": backbone},
            "method": method, "device": device, "timesteps": timesteps, "bits": bits, "targets": target,
            "hardware": hardware,
            "onnx": {"mode": onnx_mode, "input": onnx_input},
            "measure_cpu": measure_cpu, "seed": seed, "threads": threads,
        }  # fmt: skip
        settings = load_config(config, overrides)
        from stars_deploy.pipeline.building import build as run_build  # torch is loaded for this only

        result = run_build(
            settings, out or _default_folder(settings), resume=resume, overwrite=overwrite, observer=bars
        )
    if json:
        print_json(result.report)
        return
    from stars_deploy.pages import print_build

    print_build(output(), result.report, str(result.directory))


def _default_folder(settings: BuildConfig) -> Path:
    spec = settings.teacher.spec
    name = Path(spec.split(":")[0]).stem if spec.endswith(".safetensors") or ".py:" in spec else spec
    return Path("runs") / f"{name.replace(':', '-').replace('/', '-')}-{settings.method}-t{settings.timesteps}"


@app.command(epilog="Example: stars-deploy export network.nir --dt 1e-4 --timesteps 16 --target onnx --out exported")
def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="student.safetensors, a .nir of any tool, a built directory, or integers: model.npz, .net, .onnx."
        ),
    ],
    target: Annotated[list[str], typer.Option(help="lava, netx, onnx, nir. Repeat for several.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("exported"),
    timesteps: Annotated[int | None, typer.Option(help="Timesteps, in place of the model's own.")] = None,
    bits: Annotated[
        int | None, typer.Option(help="Weight bits of a student, a .nir or a build (default 8, or as built).")
    ] = None,
    input_bits: Annotated[int | None, typer.Option(help="Most bits of the input; 1 for spikes (default 8).")] = None,
    dt: Annotated[
        float | None,
        typer.Option(
            help="Seconds in a timestep of a .nir: 1e-4 for snnTorch and SpikingJelly, 1e-3 for norse, 1 for sinabs."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="noise, or an .npz with an array 'images' (default: a student's synthetic images, or noise)."
        ),
    ] = None,
    recurrent_delay: Annotated[
        int, typer.Option(min=0, help="Timesteps on loops of a .nir that have no delay (snnTorch and norse mean 1).")
    ] = 0,
    mean: Annotated[str | None, typer.Option(help="Normalisation of the input of a .nir, one a channel.")] = None,
    std: Annotated[str | None, typer.Option(help="Normalisation of the input of a .nir, one a channel.")] = None,
    onnx_mode: OnnxMode = None,
    onnx_input: OnnxInput = None,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Quantise, write and verify what exists already, without distilling."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.exporting import export_model
        from stars_deploy.pipeline.quantising import Importing

        result = export_model(
            model, target, out, timesteps=timesteps, bits=bits, input_bits=input_bits,
            importing=Importing(
                dt=dt, calibration=calibration, recurrent_delay=recurrent_delay,
                mean=numbers(mean, "--mean", float), std=numbers(std, "--std", float),
            ),
            onnx=load_section(OnnxConfig, {"mode": onnx_mode, "input": onnx_input}), observer=bars,
        )  # fmt: skip
    from stars_deploy.report import summarize_export

    content = summarize_export(result.files, result.calibrated_on, result.layers, result.warnings, result.verifications)
    if json:
        print_json(content)
        return
    from stars_deploy.pages import print_export

    print_export(output(), content)


@app.command(epilog="Example: stars-deploy teacher --dataset fashion-mnist --root DATA --arch vgg:32-64-128 --flip "
             "--out runs/teacher.safetensors")  # fmt: skip
def teacher(
    dataset: Annotated[str, typer.Option("--dataset", "--data", help="Data set with a training part.")],
    arch: Annotated[str, typer.Option(help="vgg:C1-C2-...: 3x3 conv-BN-ReLU, each later stage with stride 2.")],
    out: Annotated[Path, typer.Option(help="The .safetensors to write.")] = Path("runs/teacher.safetensors"),
    root: Root = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part.")] = 15,
    flip: Annotated[bool, typer.Option("--flip", help="Train on mirrored images as well.")] = False,
    shift: Annotated[int, typer.Option(min=0, help="Train on images moved by up to so many pixels.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (default all cores).")] = None,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Train a conv-BN teacher on real data, for examples, benchmarks and the embedded default."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.teaching import train

        result = train(
            dataset, arch, out, root=root, epochs=epochs, flip=flip, shift=shift, seed=seed, threads=threads,
            observer=bars,
        )  # fmt: skip
    if json:
        print_json(result)
    else:
        print(f"{result['file']}: test accuracy {100 * result['test_accuracy']:.2f} % "
              f"on {result['test_samples']} images of {result['dataset']}")  # fmt: skip
