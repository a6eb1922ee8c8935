"""What runs a network: ``simulate``, ``compare``, ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stars_deploy.cli.application import app
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

Chips = Annotated[
    list[str],
    typer.Option("--hardware", help="Chip profiles: loihi1, loihi2 or YAML files, with commas or the option repeated."),
]


@app.command(epilog="Example: stars-deploy simulate network.net --timesteps 16 --data images.npz")
def simulate(
    model: Annotated[Path, typer.Argument(help="A built or exported directory, or a .npz, .net, .onnx or .nir.")],
    dataset: Data = None,
    root: Root = None,
    limit: Limit = None,
    timesteps: Annotated[int | None, typer.Option(help="Timesteps, in place of the model's own.")] = None,
    hardware: Hardware = "loihi2",
    engine: Annotated[
        str, typer.Option(help="fast, reference (the definition, slow), onnx (ONNX Runtime), or lava (Lava itself).")
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


@app.command(epilog="Example: stars-deploy compare runs/digits-stars-t4 --timesteps 1,2,4,8 --csv t.csv --png t.png")
def compare(
    models: Annotated[list[Path], typer.Argument(help="Built directories or .net files.")],
    timesteps: Annotated[str, typer.Option(help="Numbers of timesteps.")] = "1,2,4,8",
    bits: Annotated[str | None, typer.Option(help="Weight bits, for built directories, such as 8,4.")] = None,
    dataset: Data = None,
    root: Root = None,
    limit: Limit = None,
    hardware: Chips = ["loihi2"],  # noqa: B006 - typer copies it
    jobs: Annotated[
        int | None, typer.Option(help="Processes (default one a processor, and this one alone for small work).")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="A Dask scheduler to run on instead, such as tcp://host:8786.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for results by content (default ~/.cache/stars-deploy).")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither look up nor keep results.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the table there as well.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it there.")] = None,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """One row a setting: accuracy beside spikes, synops, latency and energy, the Pareto-best of each chip marked."""
    with reported(json, verbose) as bars:
        from stars_deploy.comparison import tabulate_rows, write_csv
        from stars_deploy.pipeline.comparing import compare_models
        from stars_deploy.sweep.cache import choose_cache
        from stars_deploy.sweep.running import Places

        rows = compare_models(
            models, timesteps=numbers(timesteps, "--timesteps", int) or (), bits=numbers(bits, "--bits", int),
            data=dataset, root=root, limit=limit, hardware=[name for text in hardware for name in text.split(",")],
            places=Places(jobs=jobs, dask=dask), cache=choose_cache(cache, unwanted=no_cache), observer=bars,
        )  # fmt: skip
        content = tabulate_rows(rows)
        if csv is not None:
            write_csv(rows, csv)
        if png is not None:
            from stars_deploy.sweep.plot import draw_comparison

            draw_comparison(content, png)
    if json:
        print_json(content)
        return
    from stars_deploy.pages import print_comparison

    print_comparison(output(), content)


@app.command(epilog="Example: stars-deploy verify runs/digits-stars-t4 --against onnx,netx,nir,lava")
def verify(
    model: Annotated[Path, typer.Argument(help="A built or exported directory, or a .net, .onnx or .nir.")],
    against: Annotated[str | None, typer.Option(help="Targets (default all that are there and run here).")] = None,
    dataset: Data = None,
    root: Root = None,
    samples: Annotated[int, typer.Option(help="Distinct images to compare on.")] = 16,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Read back, execute and compare spike for spike; exit 1 on any difference, naming where."""
    with reported(json, verbose) as bars:
        from stars_deploy.pipeline.verifying import verify_model
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
