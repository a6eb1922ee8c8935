"""Chips for tests: a built-in profile with some of its constants changed."""

from __future__ import annotations

from importlib import resources

import yaml

from stars_deploy.hardware import PROFILES, parse_profile

#: The text of each built-in profile.
BUILT_IN = {name: (resources.files("stars_deploy") / "profiles" / f"{name}.yaml").read_text() for name in PROFILES}


def chip(base="loihi2", changes=()):
    """Return the profile `base` with `changes`: a number for a constant without a range, (low, nominal, high), or text.

    Keys are paths such as ``time.link`` or ``mesh.columns``.
    """
    content = yaml.safe_load(BUILT_IN[base])
    for path, value in dict(changes).items():
        *parents, last = path.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        if isinstance(section[last], dict) and "nominal" in section[last]:
            low, nominal, high = value if isinstance(value, tuple) else (value, value, value)
            section[last] = {**section[last], "low": low, "nominal": nominal, "high": high}
        else:
            section[last] = value
    return parse_profile(yaml.safe_dump(content, sort_keys=False), "changed")


def barrier(between, **times):
    """Return a table of barrier times [ns], one for each ``tiles_<number>``."""
    evidence = {"unit": "ns", "source": "test", "evidence": "estimate"}
    tiles = {
        int(name.removeprefix("tiles_")): {"low": time, "nominal": time, "high": time, **evidence}
        for name, time in times.items()
    }
    return {"between": between, "tiles": tiles}


def small_chip(neurons=8, *, base="loihi2", **changes):
    """Return a chip with few neurons on a core and a mesh of 3 x 2 tiles of 2 cores, that takes any network."""
    return chip(base, {
        "limits.neurons_per_core": neurons, "limits.weight_bits": 32, "limits.cores_per_chip": 12,
        "limits.axons_in_per_core": 65536, "limits.axons_out_per_core": 65536,
        "mesh.columns": 3, "mesh.rows": 2, "mesh.cores_per_tile": 2,
        **{name.replace("__", "."): value for name, value in changes.items()},
    })  # fmt: skip
