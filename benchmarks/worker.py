"""The process in which one system is measured, alone: ``python benchmarks/worker.py FOLDER``.

Reads ``request.json`` in FOLDER, calls ``measure(request)`` of the module of ``peers`` that it names, and leaves the
answer in ``answer.json``. What a peer lacks becomes a reason there, not a traceback. Imports nothing of stars-deploy:
SpikingJelly's environment has none.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from processes import end_with_parent


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Return the peer's figures, or ``{"reason": ...}`` where it cannot run here."""
    try:
        return dict(importlib.import_module(f"peers.{request['peer']}").measure(request))
    except ModuleNotFoundError as error:
        version = ".".join(str(part) for part in sys.version_info[:2])
        return {"reason": f"{error.name} is not installed in this Python {version} environment"}
    except Exception as error:  # whatever a peer raises: the other systems are still measured
        print(traceback.format_exc(), file=sys.stderr)
        line = (str(error).splitlines() or [""])[0]
        return {"reason": f"{type(error).__name__}: {line}"}


if __name__ == "__main__":
    end_with_parent()
    folder = Path(sys.argv[1])
    answer = answer_request(json.loads((folder / "request.json").read_text(encoding="utf-8")))
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
