"""What a run was made by."""

from __future__ import annotations

from pathlib import Path

from stars_deploy.sweep.content import code_version, content_key


def sources() -> str:
    """Return the SHA-256 of the package, its presets and the evidence machine, as they are on disk now.

    Asked for by each run as it begins: a checkout may be edited while a campaign runs.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    return content_key(code_version(), {file.name: file.read_bytes() for file in files})
