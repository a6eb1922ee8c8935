"""From the digits teacher that ships with stars-deploy to a verified `.net`, in Python.

    python examples/quickstart.py [OUT]

Distils a short while only (a minute on two cores); `stars-deploy build --target lava` is the full job.
"""

import sys
from pathlib import Path

from stars_deploy.pipeline import build, compare_models, load_config


def main(out: Path) -> None:
    """Build, then compare numbers of timesteps."""
    config = load_config(None, {"data": {"name": "digits"}, "distill": {"steps": 100}, "targets": ["netx"]})
    result = build(config, out)
    accuracy = result.report["accuracy"]
    print(f"teacher {accuracy['teacher']:.3f}, student {accuracy['student']:.3f}, chip {accuracy['quantized']:.3f}")

    verified = result.report["verification"]["netx"]
    print(f"model.net: {verified['compared_spikes']} spikes compared, {verified['mismatches']} differ")

    for row in compare_models([out], timesteps=(1, 4)):
        energy = row.cost.energy.total
        print(
            f"T = {row.evaluation.timesteps}: accuracy {row.evaluation.accuracy:.3f}, estimated energy "
            f"{energy.nominal:.3g} J ({energy.low:.3g} to {energy.high:.3g})"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
