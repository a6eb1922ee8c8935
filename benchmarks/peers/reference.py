"""The project's own reference: plain NumPy, the definition of what is right."""

from __future__ import annotations

from typing import Any

from digests import digest_record, firing_rates
from timing import measure_runs

from peers.integer_network import count_macs, open_network
from stars_deploy.targets.base import SpikeRecord
from stars_deploy.targets.reference import run_reference


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the reference, and digest what it computes for the others to agree with."""
    graph, images = open_network(request)
    records: list[SpikeRecord] = []

    def run() -> None:
        records[:] = [run_reference(graph, images)]

    # It is no contender, and slow: a spread of three runs is for those who have the time.
    figures = measure_runs(run, len(images), request["seconds"], warm_up=0, fewest=1 if request["quick"] else 3)
    first, rest = count_macs(graph)
    return {
        **figures,
        "digests": digest_record(records[0].spikes, records[0].potential),
        "rates": firing_rates(records[0].spikes),
        "macs_first": first,
        "macs_rest": rest,
        "neurons": sum(population.size for population in graph.populations),
    }
