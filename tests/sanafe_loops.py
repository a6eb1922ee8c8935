"""The accounting of tests/peers/run_sanafe.py in plain loops, one neuron and one synapse at a time."""

from __future__ import annotations

from collections import defaultdict

#: What its loihi.yaml charges: energy [pJ] and time [ns].
SYNAPSE = {"conv": (24.0, 3.1), "dense": (35.5, 3.8), "sparse": (33.6, 4.7)}
ACCESS, UPDATE, SPIKE_OUT = (51.2, 6.0), (21.6, 3.7), (69.3, 30.0)
AXON_IN, AXON_OUT = (0.0, 16.0), (111.0, 5.1)
HOP_EAST_WEST, HOP_NORTH_SOUTH = 3.0, 4.2
#: Time of synchronisation [us] from this many tiles on.
SYNCHRONISATION = {1: 0.6, 2: 1.0, 4: 1.4, 29: 1.8}


class Loops:
    """What a replay costs, one neuron and one synapse at a time: the terms of SANA-FE's accounting, in plain loops."""

    def __init__(self, layout, arrays):
        self.layout, self.arrays = layout, arrays
        self.units = {item["name"]: item["synapse"] for item in layout["populations"]}
        self.computed = [item["name"] for item in layout["populations"] if not item["input"]]
        self.core_of = {name: [tuple(place) for place in arrays[f"place:{name}"].tolist()] for name in self.units}
        self.targets = defaultdict(list)
        for index, item in enumerate(layout["projections"]):
            for source, target in arrays[f"synapses:{index}"].tolist():
                self.targets[item["source"], source].append((item["target"], target))
        self.tiles = {core[:2] for cores in self.core_of.values() for core in cores}
        self.steps, self.routes, self.cores = [], defaultdict(lambda: defaultdict(int)), []
        touched = set()
        for step in range(len(arrays[f"spikes:{self.computed[0]}"])):
            touched = self.advance(step, touched)

    def advance(self, step, touched):
        """Account for a timestep in which the neurons of `touched` see synapses; return those of the next."""
        counts = dict.fromkeys(("synops", "messages", "hops_east_west", "hops_north_south", "fired", "updated"), 0)
        joules = dict.fromkeys(("synapse", "soma", "network"), 0.0)
        generation, reception, reached = defaultdict(float), defaultdict(float), set()
        for name, cores in self.core_of.items():
            for index, core in enumerate(cores):
                fires = bool(self.arrays[f"spikes:{name}"][step, index])
                updated = fires or (name, index) in touched
                counts["fired"] += fires
                counts["updated"] += updated
                if name in self.computed:
                    for (energy, time), happens in ((ACCESS, True), (UPDATE, updated), (SPIKE_OUT, fires)):
                        joules["soma"] += energy * happens
                        generation[core] += time * happens
                if fires:
                    self.send(name, index, counts, joules, generation, reception)
                    reached.update(self.targets[name, index])
        counts["hops"] = counts["hops_east_west"] + counts["hops_north_south"]
        joules["total"] = sum(joules.values())
        longest = max([*generation.values(), *reception.values()])
        (synchronisation,) = [time for least, time in SYNCHRONISATION.items() if least <= len(self.tiles)][-1:]
        self.steps.append((counts, joules, longest * 1e-9 + synchronisation * 1e-6))
        self.cores.append((generation, reception))
        return reached

    def send(self, name, index, counts, joules, generation, reception):
        """Account for the messages of a neuron that fires."""
        here = self.core_of[name][index]
        parts = defaultdict(list)
        for target, other in self.targets[name, index]:
            parts[self.core_of[target][other]].append(target)
        for core, met in parts.items():
            east_west, north_south = abs(here[0] - core[0]), abs(here[1] - core[1])
            found = {"messages": 1, "synops": len(met), "hops_east_west": east_west, "hops_north_south": north_south}
            for kind, count in found.items():
                counts[kind] += count
                self.routes[name, core][kind] += count
            joules["network"] += AXON_OUT[0] + AXON_IN[0] + HOP_EAST_WEST * east_west + HOP_NORTH_SOUTH * north_south
            joules["synapse"] += sum(SYNAPSE[self.units[target]][0] for target in met)
            generation[here] += AXON_OUT[1]
            reception[core] += AXON_IN[1] + sum(SYNAPSE[self.units[target]][1] for target in met)

    def totals(self):
        return {name: sum(counts[name] for counts, _, _ in self.steps) for name in self.steps[0][0]}

    def energy(self):
        return {part: 1e-12 * sum(joules[part] for _, joules, _ in self.steps) for part in self.steps[0][1]}

    def seconds(self):
        return [seconds for _, _, seconds in self.steps]
