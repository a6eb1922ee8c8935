"""Replay recorded spikes in SANA-FE 2.2.9 on its Loihi: ``python run_sanafe.py NETWORK.npz OUT.json [ARCH.yaml]``.

NETWORK holds
  ``layout``, JSON: ``{"populations": [{"name", "input", "synapse"}], "projections": [{"source", "target"}],
  "cores_per_tile"}``, where ``input`` says that its neurons come from outside and ``synapse`` (``conv``, ``dense`` or
  ``sparse``) which unit holds the synapses that enter it. Inputs need a core as well: with ``cores_per_tile`` above 4
  every tile gets more of them;
  ``spikes:NAME`` (T, N), bool: what each population emits at each timestep of the chip;
  ``place:NAME`` (N, 3), int: the core of each neuron, as tile x, tile y and core of the tile;
  ``synapses:K`` (E, 2), int: source and target neuron of every synapse of the projection of index K. One with a weight
  of zero is met like any other: leave out those that shall not count.
ARCH is SANA-FE's own ``loihi.yaml`` unless another file is given.

OUT gets ``sanafe`` (version), ``tiles`` (with neurons on them) and, under ``simple`` and ``detailed`` (SANA-FE's timing
models), ``totals``, ``energy_j``, ``seconds``, ``steps`` (lists over time), ``cores`` (by ``x,y,core``: seconds of
generation and of reception, over time) and ``routes`` (by source population and destination core: messages, synops and
hops).

Neurons do not integrate here: what they emit is given. Every population but the inputs is made of SANA-FE's own
``loihi_lif`` neurons, with weights of 0 and a bias in the timesteps in which they are to fire. So its accounting is all
there is to see, and all of it is paid. Read in its source, and seen in what it prints:

- In a timestep all neurons are updated first; then messages are sent, and received within the same timestep. Their
  targets are updated by them one timestep later.
- A message is one fired neuron and one core with a target of it (its own core as well). It takes |dx| + |dy| hops
  between tiles, none within a tile.
- ``neurons_updated`` counts a neuron that met a synapse in the timestep before, or that fires; inputs only that fire.
- Energy: ``synapse`` x synops; for each neuron and timestep ``access``, and ``update`` if updated, and ``spike_out`` if
  it fires (nothing of these for inputs); for each message ``axon_out``, and its hops.
- Time of a timestep, ``simple``: the largest generation or reception of a core, plus the synchronisation of
  the tiles that hold neurons, of a table in steps. Generation is access, update and spike_out of the core's neurons and
  ``axon_out`` of each message sent; reception ``axon_in`` of each message and ``synapse`` of each synop. ``detailed``
  lets messages wait for one another.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import io
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sanafe

#: The neuron fires in a timestep in which it has the bias, and forgets.
NEURON = {"threshold": 0.5, "reset": 0.0, "reset_mode": "hard", "leak_decay": 0.0, "input_decay": 0.0, "bias": 0.0}
FIRE, REST = {"bias": 1.0}, {"bias": 0.0}
TIMING_MODELS = ("simple", "detailed")
#: Our names of the counts that SANA-FE returns.
COUNTS = {
    "spikes": "synops",
    "packets_sent": "messages",
    "neurons_fired": "fired",
    "neurons_updated": "updated",
}
ENERGIES = ("synapse", "dendrite", "soma", "network", "total")

Arrays = dict[str, np.ndarray]


def main(arguments: Sequence[str]) -> None:
    """Read, replay under both timing models and write."""
    network, out, *architecture = (Path(argument) for argument in arguments)
    with np.load(network) as file:
        given = dict(file)
    layout = json.loads(str(given["layout"]))
    results: dict[str, Any] = {"sanafe": importlib.metadata.version("sanafe"), "tiles": count_tiles(layout, given)}
    for timing in TIMING_MODELS:
        with contextlib.redirect_stdout(io.StringIO()):
            results[timing] = replay(layout, given, timing, *architecture)
    out.write_text(json.dumps(results, indent=1), encoding="utf-8")


def count_tiles(layout: dict[str, Any], given: Arrays) -> int:
    """Return how many tiles hold neurons."""
    return len({(int(x), int(y)) for item in layout["populations"] for x, y, _ in given[f"place:{item['name']}"]})


def replay(layout: dict[str, Any], given: Arrays, timing: str, *architecture: Path) -> dict[str, Any]:
    """Return what SANA-FE counts and charges."""
    arch, height = load(layout, given, *architecture)
    chip = sanafe.SpikingChip(arch)
    chip.load(build(layout, given, arch, height))
    computed = [item["name"] for item in layout["populations"] if not item["input"]]
    before = {name: np.zeros(given[f"spikes:{name}"].shape[1], bool) for name in computed}
    books = Books()
    for step in range(len(given[f"spikes:{layout['populations'][0]['name']}"])):
        for name in computed:
            fires = given[f"spikes:{name}"][step].astype(bool)
            for index in np.flatnonzero(fires != before[name]):
                neuron = chip.mapped_neuron_groups[name][int(index)]
                neuron.set_attributes(model_attributes=FIRE if fires[index] else REST)
            before[name] = fires
        books.add(step, chip.sim(1, timing_model=timing, perf_trace=True, message_trace=True))
    return books.close()


def load(layout: dict[str, Any], given: Arrays, architecture: Path | None = None) -> tuple[sanafe.Architecture, int]:
    """Return SANA-FE's Loihi, or what `architecture` describes in its words, and the height of its mesh in tiles.

    Tiles get as many cores as the layout says, and cores only the units of inputs that are used: the file has 1024,
    which take long to make and cost nothing on the chip.
    """
    inputs = [given[f"place:{item['name']}"] for item in layout["populations"] if item["input"]]
    used = max((int(np.unique(places, axis=0, return_counts=True)[1].max()) for places in inputs), default=1)
    path = architecture or Path(str(importlib.resources.files("sanafe.examples"))) / "loihi.yaml"
    text = path.read_text(encoding="utf-8")
    for unit, count in (("core", layout["cores_per_tile"]), ("inputs", used)):
        text, found = re.subn(rf"loihi_{unit}\[0\.\.\d+\]", f"loihi_{unit}[0..{count - 1}]", text)
        if found != 1:
            raise ValueError(f"{path}: loihi_{unit}[0..n] is there {found} times, not once")
    height = re.search(r"^ *height: (\d+)$", text, re.MULTILINE)
    if height is None:
        raise ValueError(f"{path}: no height of the mesh")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loihi.yaml"
        file.write_text(text, encoding="utf-8")
        return sanafe.load_arch(file), int(height[1])


def build(layout: dict[str, Any], given: Arrays, arch: sanafe.Architecture, height: int) -> sanafe.Network:
    """Return the network, each neuron on its core; tiles are numbered down the columns of the mesh."""
    tiles = {(tile.id // height, tile.id % height): tile for tile in arch.tiles}
    network = sanafe.Network()
    groups = {}
    for item in layout["populations"]:
        name = item["name"]
        spikes, places = given[f"spikes:{name}"], given[f"place:{name}"]
        unit = f"loihi_{item['synapse']}_synapse"
        kind = {} if item["input"] else {"soma_hw_name": "loihi_lif", "model_attributes": NEURON}
        group = network.create_neuron_group(name, spikes.shape[1], default_synapse_hw_name=unit, **kind)
        taken: dict[tuple[int, ...], int] = defaultdict(int)
        for index, place in enumerate(map(tuple, places.tolist())):
            if item["input"]:  # each input neuron has a unit of its own, which holds one train of spikes
                train = {"spikes": [bool(value) for value in spikes[:, index]]}
                group[index].set_attributes(soma_hw_name=f"loihi_inputs[{taken[place]}]", model_attributes=train)
                taken[place] += 1
            group[index].map_to_core(tiles[place[:2]].cores[place[2]])
        groups[name] = group
    for index, item in enumerate(layout["projections"]):
        pairs = [(int(source), int(target)) for source, target in given[f"synapses:{index}"]]
        groups[item["source"]].connect_neurons_sparse(groups[item["target"]], {"w": [0.0] * len(pairs)}, pairs)
    return network


class Books:
    """What SANA-FE counted and charged in the timesteps so far."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = defaultdict(list)
        self.energies: dict[str, list[float]] = defaultdict(list)
        self.cores: dict[str, dict[str, dict[int, float]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(float))
        )
        self.routes: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def add(self, step: int, results: dict[str, Any]) -> None:
        """Enter one timestep."""
        for theirs, ours in COUNTS.items():
            self.steps[ours].append(results[theirs])
        self.steps["hops"].append(results["perf_trace"]["hops"][0])
        self.steps["seconds"].append(results["sim_time"])
        for part in ENERGIES:
            self.energies[part].append(results["energy"][part])
        (messages,) = results["message_trace"]
        hops = {"hops_east_west": 0, "hops_north_south": 0}
        for message in messages:
            source = "{src_x},{src_y},{src_core_offset}".format(**message)
            self.cores[source]["generation_s"][step] += message["generation_delay"]
            if message["placeholder"]:  # updates of the core after its last message: not a message
                continue
            target = "{dest_x},{dest_y},{dest_core_offset}".format(**message)
            self.cores[target]["reception_s"][step] += message["processing_delay"]
            east_west = abs(message["src_x"] - message["dest_x"])
            north_south = abs(message["src_y"] - message["dest_y"])
            route = self.routes[message["src_neuron_group_id"], target]
            route["messages"] += 1
            route["synops"] += message["spikes"]
            for name, count in (("hops_east_west", east_west), ("hops_north_south", north_south)):
                hops[name] += count
                route[name] += count
        for name, count in hops.items():
            self.steps[name].append(count)

    def close(self) -> dict[str, Any]:
        """Return the entries of one run of OUT."""
        count = len(self.steps["seconds"])
        names = (*COUNTS.values(), "hops", "hops_east_west", "hops_north_south")
        return {
            "totals": {name: sum(self.steps[name]) for name in names},
            "energy_j": {part: sum(joules) for part, joules in self.energies.items()},
            "seconds": sum(self.steps["seconds"]),
            "steps": {**self.steps, "energy_j": self.energies},
            "cores": {
                core: {name: [seconds[step] for step in range(count)] for name, seconds in kinds.items()}
                for core, kinds in sorted(self.cores.items())
            },
            "routes": [
                {"source": source, "core": core, **counts} for (source, core), counts in sorted(self.routes.items())
            ],
        }


if __name__ == "__main__":
    main(sys.argv[1:])
