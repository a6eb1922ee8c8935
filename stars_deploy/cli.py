"""The command line: it reads options, calls :mod:`stars_deploy.pipeline`, and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stars_deploy.config import BuildConfig, load_config
from stars_deploy.console import output, print_json
from stars_deploy.options import (
    Data,
    Hardware,
    InputBits,
    Json,
    Limit,
    Memory,
    ResetInterval,
    ResetOffset,
    Root,
    Threads,
    Timing,
    Verbose,
    Version,
    numbers,
    reported,
    size,
)

app = typer.Typer(
    name="stars-deploy", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil an ANN into a spiking student without data, quantise it to Loihi integers, verify and cost it.",
    epilog="Start with: stars-deploy build --target lava",
)  # fmt: skip


@app.callback()
def _root(version: Version = False) -> None:
    """Only here so that ``stars-deploy --version`` works without a command."""


@app.command(epilog="Example: stars-deploy build --teacher runs/teacher.safetensors --dataset fashion-mnist "
             "--root DATA --target lava --out runs/fashion")  # fmt: skip
def build(
    target: Annotated[list[str] | None, typer.Option(help="What to write: lava, netx. Repeat for several.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="digits, vgg:16-32-64, package.module:factory, "
            "file.py:factory, torchvision:NAME, or a .safetensors of `stars-deploy teacher`."
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights: .safetensors, or a torch state dict.")] = None,
    trust_weights: Annotated[
        bool, typer.Option("--trust-weights", help="Load a torch file on torch before 2.6.")
    ] = False,
    input_shape: Annotated[str | None, typer.Option(help="channels,height,width of the teacher's input.")] = None,
    mean: Annotated[str | None, typer.Option(help="Input normalisation, one value a channel.")] = None,
    std: Annotated[str | None, typer.Option(help="Input normalisation, one value a channel.")] = None,
    student: Annotated[str | None, typer.Option(help="inherit, or vgg:16-32-64.")] = None,
    dataset: Data = None,
    root: Root = None,
    limit: Limit = None,
    method: Annotated[str | None, typer.Option(help="stars or bn: the objectives of synthesis.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="Timesteps for one inference (T) (default 4).")] = None,
    bits: Annotated[int | None, typer.Option(help="Weight bits, 2 to 8 (default 8).")] = None,
    steps: Annotated[int | None, typer.Option(help="Distillation steps.")] = None,
    hardware: Annotated[str | None, typer.Option(help="loihi1, loihi2 or a YAML profile.")] = None,
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
            "teacher": {
                "spec": teacher, "weights": weights, "trust_weights": trust_weights or None,
                "input_shape": numbers(input_shape, "--input-shape", int),
                "mean": numbers(mean, "--mean", float), "std": numbers(std, "--std", float),
            },
            "data": {"name": dataset, "root": root, "limit": limit},
            "student": {"spec": student}, "distill": {"steps": steps},
            "method": method, "timesteps": timesteps, "bits": bits, "targets": target, "hardware": hardware,
            "seed": seed, "threads": threads,
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


@app.command(
    epilog="Example: stars-deploy export runs/digits-stars-t4/student.safetensors --target netx --out exported"
)
def export(
    model: Annotated[Path, typer.Argument(help="student.safetensors, a built directory, model.npz or .net.")],
    target: Annotated[list[str], typer.Option(help="lava, netx. Repeat for several.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("exported"),
    timesteps: Annotated[int | None, typer.Option(help="Timesteps, in place of the model's own.")] = None,
    bits: Annotated[
        int | None, typer.Option(help="Weight bits of a student or a build (default 8, or as built).")
    ] = None,
    input_bits: Annotated[int | None, typer.Option(help="Most bits of the image (default 8).")] = None,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Quantise, write and verify what exists already, without distilling."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.exporting import export_model

        result = export_model(model, target, out, timesteps=timesteps, bits=bits, input_bits=input_bits, observer=bars)
    from stars_deploy.report import summarize_verification

    verified = {item.target: summarize_verification(item, "export") for item in result.verifications}
    if json:
        print_json({"files": [str(path) for path in result.files], "calibrated_on": result.calibrated_on,
                    "verification": verified})  # fmt: skip
        return
    from stars_deploy.pages import print_verification

    print_verification(output(), verified)
    output().print(f"calibrated on {result.calibrated_on}; written: {', '.join(map(str, result.files))}", markup=False)


@app.command(epilog="Example: stars-deploy simulate network.net --timesteps 16 --data images.npz")
def simulate(
    model: Annotated[Path, typer.Argument(help="A built directory, a model.npz or a .net file.")],
    dataset: Data = None,
    root: Root = None,
    limit: Limit = None,
    timesteps: Annotated[int | None, typer.Option(help="Timesteps, in place of the model's own.")] = None,
    hardware: Hardware = "loihi2",
    engine: Annotated[
        str, typer.Option(help="fast, reference (the definition, slow), or lava (Lava itself).")
    ] = "fast",
    threads: Threads = None,
    memory: Memory = "2GiB",
    input_bits: InputBits = None,
    timing: Timing = None,
    reset_interval: ResetInterval = 0,
    reset_offset: ResetOffset = 0,
    record: Annotated[
        str | None, typer.Option(help="Layers whose spikes to keep, such as conv1,dense3, or all.")
    ] = None,
    spikes: Annotated[Path, typer.Option(help="The .npz for the spikes of --record.")] = Path("spikes.npz"),
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Run a network as the chip would: accuracy, spikes, synaptic operations, latency, energy."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.models import Reading
        from stars_deploy.pipeline.simulating import EngineChoice, Recording, simulate_model

        result = simulate_model(
            model, data=dataset, root=root, limit=limit, timesteps=timesteps, hardware=hardware,
            engine=EngineChoice(name=engine, threads=threads, memory=size(memory, "--memory")),
            reading=Reading(input_bits=8 if input_bits is None else input_bits, timing=timing,
                            reset_interval=reset_interval, reset_offset=reset_offset),
            recording=None if record is None else Recording(layers=record.split(","), out=spikes),
            observer=bars,
        )  # fmt: skip
    if json:
        print_json(result.summary)
        return
    from stars_deploy.pages import print_simulation

    print_simulation(output(), result.summary)


@app.command(epilog="Example: stars-deploy compare runs/digits-stars-t4 --timesteps 1,2,4,8 --csv table.csv")
def compare(
    models: Annotated[list[Path], typer.Argument(help="Built directories or .net files.")],
    timesteps: Annotated[str, typer.Option(help="Numbers of timesteps.")] = "1,2,4,8",
    bits: Annotated[str | None, typer.Option(help="Weight bits, for built directories, such as 8,4.")] = None,
    dataset: Data = None,
    root: Root = None,
    limit: Limit = None,
    hardware: Hardware = "loihi2",
    csv: Annotated[Path | None, typer.Option(help="Write the table there as well.")] = None,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """One row a setting: accuracy beside spikes, synops, latency and energy, the Pareto-best marked."""
    with reported(json, verbose) as bars:
        from stars_deploy.comparison import tabulate_rows, write_csv
        from stars_deploy.pipeline.measuring import compare_models

        rows = compare_models(
            models, timesteps=numbers(timesteps, "--timesteps", int) or (), bits=numbers(bits, "--bits", int),
            data=dataset, root=root, limit=limit, hardware=hardware, observer=bars,
        )  # fmt: skip
        if csv is not None:
            write_csv(rows, csv)
    content = tabulate_rows(rows)
    if json:
        print_json(content)
        return
    from stars_deploy.pages import print_comparison

    print_comparison(output(), content)


@app.command(epilog="Example: stars-deploy verify runs/digits-stars-t4 --against netx,lava")
def verify(
    model: Annotated[Path, typer.Argument(help="A built directory or a .net file.")],
    against: Annotated[str | None, typer.Option(help="Targets (default all that run here).")] = None,
    dataset: Data = None,
    root: Root = None,
    samples: Annotated[int, typer.Option(help="Distinct images to compare on.")] = 16,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Read back, execute and compare spike for spike; exit 1 on any difference, naming where."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.measuring import verify_model
        from stars_deploy.report import summarize_verification
        from stars_deploy.verification import check_verified

        results = verify_model(
            model, None if against is None else against.split(","), data=dataset, root=root, samples=samples,
            observer=bars,
        )  # fmt: skip
        check_verified(results)
    content = {item.target: summarize_verification(item, dataset or "of the build") for item in results}
    if json:
        print_json(content)
        return
    from stars_deploy.pages import print_verification

    print_verification(output(), content)


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


@app.command(epilog="Example: stars-deploy targets --json")
def targets(json: Json = False, verbose: Verbose = False, version: Version = False) -> None:
    """Show what can be written and executed here, and why not."""
    from stars_deploy.console import table
    from stars_deploy.targets import TARGETS

    rows: list[dict[str, Any]] = []
    for name, target in TARGETS.items():
        available = target.availability()
        rows.append({"target": name, "file": target.filename, "runs_here": available.ok, "reason": available.reason,
                     "summary": target.summary})  # fmt: skip
    if json:
        print_json(rows)
        return
    body = [[row["target"], row["file"], "yes" if row["runs_here"] else "no", row["reason"] or row["summary"]]
            for row in rows]  # fmt: skip
    output().print(table("targets", ["target", "file", "runs here", ""], body))


@app.command(epilog="Example: stars-deploy doctor")
def doctor(json: Json = False, verbose: Verbose = False, version: Version = False) -> None:
    """Show versions and what is missing on this machine."""
    from stars_deploy.console import table
    from stars_deploy.provenance import DISTRIBUTIONS, versions
    from stars_deploy.targets import TARGETS

    found = versions()
    missing = {name: target.availability().reason for name, target in TARGETS.items()
               if not target.availability().ok}  # fmt: skip
    if json:
        print_json({"versions": found, "not_installed": [name for name in DISTRIBUTIONS if name not in found],
                    "cannot_run": missing})  # fmt: skip
        return
    names = ["stars-deploy", "python", "machine", *DISTRIBUTIONS]
    output().print(table("versions", ["", "version"], [[name, found.get(name, "not installed")] for name in names]))
    for name, reason in missing.items():
        output().print(f"{name} cannot run here: {reason}", markup=False)


def main() -> None:
    """Entry point of ``stars-deploy``."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    app()
