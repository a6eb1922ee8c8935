"""Run arms against each other, paired by seed: ``python benchmarks/stars.py CAMPAIGN.yaml --teacher FILE --root DATA``.

A campaign (benchmarks/campaigns) names students, backbones, arms and seeds; each run is a process with one thread and
leaves one JSON. What is done is not done again, so the same command goes on after an interrupt. See docs/evidence.md.
RCA and TAR are reconstructed from the abstract of STARS; the formulas are ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.planning import Campaign, load_campaign, plan_runs
from evidence.plots import draw
from evidence.running import Place, run_campaign
from evidence.summary import markdown, summarize
from processes import end_workers_when_terminated

from stars_deploy.artifacts import existing_file, write_json, written_whole
from stars_deploy.errors import StarsDeployError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, or list, or summarise; return 1 where a run failed, 2 for wrong input, 130 after Ctrl-C, else 0."""
    options = parse_options(arguments)
    try:
        campaign = load_campaign(options.campaign)
        folder = options.out or Path("runs") / "evidence" / options.campaign.stem
        if options.dry_run:
            return _list(campaign, Place(folder=folder, teacher=options.teacher, root=None))
        place = Place(folder=folder, teacher=None, root=None) if options.summary else _place(options, campaign, folder)
        failed = [] if options.summary else run_campaign(campaign, place, options.workers, _say)
        _summarize(campaign, place, options.json)
    except StarsDeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one was", file=sys.stderr)
        return 130
    return int(bool(failed))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaign", type=Path, help="a YAML file, see benchmarks/campaigns")
    parser.add_argument("--teacher", type=Path, help="the .safetensors of `stars-deploy teacher`")
    parser.add_argument("--root", type=Path, help="folder of the data set")
    parser.add_argument("--out", type=Path, help="folder of the results (default runs/evidence/CAMPAIGN)")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time, of one thread each (default 2)")
    parser.add_argument("--summary", action="store_true", help="run nothing, summarise what there is")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, and which are done")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least 1")
    if options.teacher is None and not (options.summary or options.dry_run):
        parser.error("--teacher: needed to run (stars-deploy teacher makes one)")
    return options


def _place(options: argparse.Namespace, campaign: Campaign, folder: Path) -> Place:
    from evidence.checking import check_campaign  # torch: listing and summarising shall not wait for it

    existing_file(options.teacher)
    root = None if options.root is None else options.root.resolve()
    place = Place(folder=folder.resolve(), teacher=options.teacher.resolve(), root=root)
    place.results(campaign)
    check_campaign(campaign, place)
    folder.mkdir(parents=True, exist_ok=True)
    return place


def _list(campaign: Campaign, place: Place) -> int:
    done = place.results(campaign)
    for run in plan_runs(campaign):
        print(f"{'done   ' if run.name in done else 'waiting'}  {run.name}")
    return 0


def _summarize(campaign: Campaign, place: Place, as_json: bool) -> None:
    results = list(place.results(campaign).values())
    if not results:
        print("no run is done yet", file=sys.stderr)
        return
    summary = summarize(campaign, results, len(plan_runs(campaign)))
    write_json(place.folder / "summary.json", summary)
    with written_whole(place.folder / "summary.md") as draft:
        draft.write_text(markdown(summary), encoding="utf-8")
    for file in draw(summary, results, place.folder):
        _say(f"written: {file}")
    print(json.dumps(summary, indent=2) if as_json else markdown(summary))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    end_workers_when_terminated()
    sys.exit(main())
