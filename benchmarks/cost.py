"""Check the cost model against what is known: ``python benchmarks/cost.py``. See docs/cost-model.md.

PilotNet on Loihi 2 needs ../shared/networks/pilotnet_lif.net; SANA-FE is installed into an environment of its own
(``--peers DIR`` keeps it). What cannot be had is reported with the reason. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keyword_spotting
import pilotnet
import sanafe_student
from environments import EnvironmentFailedError
from machine import describe_machine
from sanafe_replay import ReplayError

SCHEMA = 1
Found = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print; return 1 where a bound does not hold, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--peers", metavar="DIR", type=Path, help="keep SANA-FE's environment there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        peers = options.peers or Path(place)
        sections = {
            "pilotnet_loihi2": _section(pilotnet.replay, pilotnet.check),
            "sanafe": _section(lambda: sanafe_student.replay(peers), sanafe_student.check),
            "keyword_spotting": _section(keyword_spotting.replay, keyword_spotting.check),
        }
    results = {"schema": SCHEMA, "machine": describe_machine(), **sections}
    print(json.dumps(results, indent=2) if options.json else format_sections(sections))
    return int(any(not held for section in sections.values() for held in section.get("bounds", {}).values()))


def _section(replay: Callable[[], Found], check: Callable[[Found], dict[str, bool]]) -> Found:
    try:
        found = replay()
    except (FileNotFoundError, EnvironmentFailedError, ReplayError) as failure:
        return {"reason": f"not done: {failure}"}
    return {**found, "bounds": check(found)}


def format_sections(sections: dict[str, Found]) -> str:
    """Return the bounds of each section as text."""
    lines = []
    for name, section in sections.items():
        if "reason" in section:
            lines.append(f"{name}: {section['reason']}")
        for bound, held in section.get("bounds", {}).items():
            lines.append(f"{name}: {'holds' if held else 'DOES NOT HOLD'}: {bound}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
