"""PilotNet on Loihi 2 with a silent input: what was measured, and what the cost model says of the same run.

Measured by Intel on one Loihi 2 chip (Oheo Gulch), 10,000 timesteps, reset every 16: lava-nc/lava-dl @ d825ac50,
tutorials/lava/lib/dl/netx/pilotnet_snn/benchmark.ipynb, outputs stored in the notebook. Its input was silent: the image
that it assigns had no effect (the counters of the first layer read 0), so no data set is needed to replay it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stars_deploy.activity import measure_activity
from stars_deploy.energy import EnergyEstimate, estimate_energy
from stars_deploy.hardware import load_profile
from stars_deploy.hardware.mapping import map_network
from stars_deploy.latency import LatencyEstimate, estimate_latency
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.traffic import Counter, count_sums

NETWORK = Path(__file__).resolve().parents[2] / "shared" / "networks" / "pilotnet_lif.net"
RESET = 16
#: Timesteps replayed: some periods of the reset, of which the first, when the pipeline fills, is left out.
STEPS, WARM = 144, 16

#: Cores of each layer, from the compiler's table.
CORES = (13, 25, 13, 3, 3, 2, 12, 1, 1, 1)
#: 64-bit words of synaptic memory on a core, from the same table; the dense ones are 15 to 20 bits a synapse.
CONV_WORDS = {"conv1": 81, "conv2": 864, "conv3": 1620, "conv4": 2160, "conv5": 2880}
DENSE_WORDS = {"dense6": 7253, "dense7": 1300, "dense8": 150, "dense9": 10}
#: Synops a timestep on the full cores of a layer: the counters, read off their plot, over 10,000 timesteps.
FULL_CORE_SYNOPS = {"conv2": 131_170, "conv3": 150_770, "conv4": 52_300}
#: All cores together.
TOTAL_SYNOPS = 2_288_000
DYNAMIC_MJ, TOTAL_MJ = 1.0935, 1.661
STEP_US = 152.85
#: Time of a timestep, period 4, from the plot of the notebook.
TRACE_US = (201.1, 107.1, 181.0, 125.1)


def replay(profile: str = "loihi2") -> dict[str, Any]:
    """Return what the model says of the run, beside what was measured.

    Raises
    ------
    FileNotFoundError
        If the network is not there.
    """
    if not NETWORK.is_file():
        raise FileNotFoundError(NETWORK)
    graph = read_netx(NETWORK, STEPS, timing="pipelined", reset_interval=RESET, reset_offset=3)
    counter = Counter(graph, map_network(graph, load_profile(profile)))
    activity = measure_activity(graph, np.zeros((1, *graph.input.shape), np.int64))
    latency = estimate_latency(graph, activity, counter)
    traffic = count_sums(counter, activity)
    energy = estimate_energy(traffic, 1, counter.mapping, latency)
    return {
        "mapping": _mapping(counter),
        "counts": _counts(counter, traffic.synops[WARM:, 0]),
        "energy": _energy(energy),
        "time": _time(latency),
    }


def _mapping(counter: Counter) -> dict[str, Any]:
    layers = counter.mapping.layers
    words = {layer.name: layer.synaptic_words for layer in layers}
    return {
        "cores": [layer.cores for layer in layers],
        "cores_published": list(CORES),
        "conv_words": {name: words[name] for name in CONV_WORDS},
        "conv_words_published": CONV_WORDS,
        "dense_words": {name: words[name] for name in DENSE_WORDS},
        "dense_words_published": DENSE_WORDS,
    }


def _counts(counter: Counter, synops: np.ndarray) -> dict[str, Any]:
    """Return synops a timestep: of the full cores of each layer, and in all."""
    cores = counter.mapping.cores
    mean = synops.mean(axis=0)
    found = {}
    for layer in FULL_CORE_SYNOPS:
        own = [core for core in cores if core.layer == layer]
        full = max(core.neurons for core in own)
        found[layer] = [float(mean[core.index]) for core in own if core.neurons == full]
    return {
        "full_cores": found,
        "full_cores_measured": FULL_CORE_SYNOPS,
        "total": float(mean.sum()),
        "total_measured": TOTAL_SYNOPS,
    }


def _energy(energy: EnergyEstimate) -> dict[str, Any]:
    inferences = STEPS / RESET
    return {
        "dynamic_mj": energy.dynamic.nominal / inferences * 1e3,
        "dynamic_mj_low": energy.dynamic.low / inferences * 1e3,
        "dynamic_mj_high": energy.dynamic.high / inferences * 1e3,
        "dynamic_mj_measured": DYNAMIC_MJ,
        "total_mj": energy.total.nominal / inferences * 1e3,
        "total_mj_measured": TOTAL_MJ,
        "parts_uj_per_step": {name: part.nominal / STEPS * 1e6 for name, part in energy.parts.items()},
    }


def _time(latency: LatencyEstimate) -> dict[str, Any]:
    steps = np.array([step.seconds * 1e6 for step in latency.steps])[WARM:]
    period = steps.reshape(-1, len(TRACE_US)).mean(axis=0)
    # The plot does not say at which timestep its period begins.
    turns = [np.roll(period, shift) for shift in range(len(period))]
    turned = max(turns, key=lambda one: float(np.corrcoef(one, TRACE_US)[0, 1]))
    return {
        "step_us": float(steps.mean()),
        "step_us_measured": STEP_US,
        "trace_us": turned.tolist(),
        "trace_us_measured": list(TRACE_US),
        "r": float(np.corrcoef(turned, TRACE_US)[0, 1]),
        "mape": float(np.mean(np.abs(turned - TRACE_US) / TRACE_US)),
        "is_a_fit": "the time of a synop was fitted to the measured mean; the trace was not used for it",
    }


def check(found: Mapping[str, Any]) -> dict[str, bool]:
    """Return which of the bounds of docs/cost-model.md hold."""
    mapping, counts, energy, time = (found[part] for part in ("mapping", "counts", "energy", "time"))

    def within(value: float, reference: float, share: float) -> bool:
        return abs(value / reference - 1) <= share

    return {
        "cores equal the compiler's table": mapping["cores"] == mapping["cores_published"],
        "words of convolutions equal the compiler's table": mapping["conv_words"] == mapping["conv_words_published"],
        "words of dense layers within 20 %": all(
            within(words, mapping["dense_words_published"][name], 0.2) for name, words in mapping["dense_words"].items()
        ),
        "synops of full cores within 1 %": all(
            within(value, counts["full_cores_measured"][name], 0.01)
            for name, values in counts["full_cores"].items()
            for value in values
        ),
        "synops in total within 3 %": within(counts["total"], counts["total_measured"], 0.03),
        "dynamic energy within 15 %": within(energy["dynamic_mj"], energy["dynamic_mj_measured"], 0.15),
        "mean step within 10 % (a fit)": within(time["step_us"], time["step_us_measured"], 0.1),
        "r of the step trace at least .95": time["r"] >= 0.95,
    }
