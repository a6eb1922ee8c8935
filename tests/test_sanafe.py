"""SANA-FE 2.2.9 itself accounts for recorded spikes on the cores that we give it, in a process of its own.

SANA-FE is GPL-3: it is run, never imported, and nothing of it is copied; ``tests/data/sanafe.json`` holds figures that
it printed. ``STARS_WRITE_GOLDEN=1 pytest -m slow tests/test_sanafe.py`` writes them anew.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from neurobench_networks import cases
from sanafe_loops import Loops
from sanafe_replay import ReplayError, exchange, find_synapses, first_inference, places_of, run_sanafe, steady
from synapses import synapses_of

import stars_deploy
from stars_deploy.activity import measure_activity
from stars_deploy.energy import estimate_energy
from stars_deploy.hardware.mapping import check_mapped, map_network
from stars_deploy.hardware.profile import parse_profile
from stars_deploy.latency import estimate_latency
from stars_deploy.schedule import Clock
from stars_deploy.targets.reference import run_reference
from stars_deploy.traffic import Counter, count_sums

GOLDEN = Path(__file__).parent / "data" / "sanafe.json"
PROFILES = Path(stars_deploy.__file__).parent / "profiles"
VERSION = "2.2.9"
#: Relative: both sum the same terms, in another order.
NEAR = 1e-9
#: Tiles and cores of the spread network, all over the mesh; a layer is cut into parts of equal size.
PLACES = {
    "image": [(0, 0, 1)],
    "first": [(7, 3, 0), (7, 3, 1), (2, 0, 3)],
    "second": [(0, 3, 2), (5, 1, 0)],
    "last": [(5, 1, 3)],
}
#: One tile: only the cores differ.
TOGETHER = {"image": [(4, 2, 0)], "first": [(4, 2, 1)], "second": [(4, 2, 2)], "last": [(4, 2, 3)]}
#: Timesteps by which the pipelined chip is late in each layer.
LATE = {"image": 0, "first": 1, "second": 2, "last": 3}
#: Placement, synapses of a convolution, and whether the record of a layer is replayed as late as the chip would be.
RUNS = {"spread": (PLACES, "conv", True), "one tile": (TOGETHER, "sparse", False)}
#: Most neurons on a core. SANA-FE's and Loihi's own limit is 1024; with fewer a small network takes more cores.
MAPPED = {"few cores": 256, "many cores": 16}
#: What SANA-FE's detailed timing is below, as a factor on ours: it lets messages wait for others, which we leave out.
#: Where one tile sends 400 messages a timestep to 40 cores that have little else to do, that is no small thing.
SLOWER = {"few cores": 1.1, "many cores": 1.6}


def replayed(case, sample, late):
    """Spikes of one sample, (T, N) of each layer and of the input; each layer `late` timesteps, with as many more."""
    record = run_reference(case.graph, case.images.swapaxes(0, 1)).spikes
    shown = {"image": case.images[sample] != 0} | {name: spikes[:, sample] for name, spikes in record.items()}
    longest = max(late.values())
    return {
        name: np.pad(spikes.reshape(len(spikes), -1), ((late[name], longest - late[name]), (0, 0)))
        for name, spikes in shown.items()
    }


def spread(graph, cores):
    """Places of each layer's neurons, (N, 3): parts of nearly equal size on the `cores` of the layer."""
    sizes = {graph.input.name: int(np.prod(graph.input.shape)), **{p.name: p.size for p in graph.populations}}
    return {
        name: np.array([cores[name][index * len(cores[name]) // size] for index in range(size)])
        for name, size in sizes.items()
    }


def run_of(name):
    """The exchange of one of RUNS."""
    cores, convolution, pipelined = RUNS[name]
    case = cases()["binary"]
    spikes = replayed(case, 0, LATE if pipelined else dict.fromkeys(LATE, 0))
    return exchange(case.graph, spikes, spread(case.graph, cores), convolution=convolution)


@pytest.fixture(scope="module")
def known(peer_python):
    """A function from a name in RUNS, or of a mapped network, to what SANA-FE makes of it, once."""

    @functools.cache
    def run(name):
        found = run_sanafe(peer_python("sanafe"), *(run_of(name) if name in RUNS else replay_of(name)))
        assert found["sanafe"] == VERSION
        return found

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_sanafe_accounts_as_we_read_it(name, known):
    found, loops = known(name), Loops(*run_of(name))
    simple = found["simple"]
    assert found["tiles"] == len(loops.tiles)
    assert simple["totals"] == loops.totals()
    assert simple["energy_j"] == {"dendrite": 0, **{k: pytest.approx(v, rel=NEAR) for k, v in loops.energy().items()}}
    assert simple["steps"]["seconds"] == pytest.approx(loops.seconds(), rel=NEAR)
    for counts in loops.steps[0][0]:
        assert simple["steps"][counts] == [step[counts] for step, _, _ in loops.steps], counts
    for position, kind in enumerate(("generation_s", "reception_s")):
        for core in {core for step in loops.cores for core in step[position]}:
            expected = [1e-9 * step[position][core] for step in loops.cores]
            given = simple["cores"][",".join(map(str, core))][kind]
            assert given == pytest.approx(expected, rel=NEAR, abs=1e-18), (core, kind)
    routes = [
        {"source": source, "core": ",".join(map(str, core)), **counts}
        for (source, core), counts in sorted(loops.routes.items())
    ]
    assert simple["routes"] == routes


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_only_time_depends_on_the_timing_model(name, known):
    found = known(name)
    simple, detailed = found["simple"], found["detailed"]
    assert (simple["totals"], simple["energy_j"]) == (detailed["totals"], detailed["energy_j"])
    pairs = list(zip(simple["steps"]["seconds"], detailed["steps"]["seconds"], strict=True))
    assert all(less <= more * (1 + NEAR) for less, more in pairs) and any(less < more for less, more in pairs)


def summary_of(found):
    """What is kept of a run."""
    simple, detailed = found["simple"], found["detailed"]
    seconds = {"simple": simple["steps"]["seconds"], "detailed": detailed["steps"]["seconds"]}
    return {"totals": simple["totals"], "energy_j": simple["energy_j"], "seconds_per_step": seconds}


@pytest.mark.slow
def test_golden_figures_are_what_sanafe_says(known):
    runs = {name: summary_of(known(name)) for name in (*RUNS, *(f"{name}, first" for name in MAPPED))}
    runs |= {f"{name}, steady": second_image(known(f"{name}, steady")) for name in MAPPED}
    if os.environ.get("STARS_WRITE_GOLDEN"):
        command = "STARS_WRITE_GOLDEN=1 pytest -m slow tests/test_sanafe.py"
        kept = {"command": command, "sanafe": VERSION, "architecture": "its own loihi.yaml", "runs": runs}
        GOLDEN.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["sanafe"] == VERSION and golden["runs"].keys() == runs.keys()
    for name, kept in golden["runs"].items():
        assert kept["totals"] == runs[name]["totals"]
        assert kept["energy_j"] == pytest.approx(runs[name]["energy_j"], rel=NEAR)
        for timing, seconds in kept["seconds_per_step"].items():
            assert seconds == pytest.approx(runs[name]["seconds_per_step"][timing], rel=NEAR), (name, timing)


@pytest.mark.parametrize("name", RUNS)
def test_loops_are_what_sanafe_printed(name):
    kept, loops = json.loads(GOLDEN.read_text(encoding="utf-8"))["runs"][name], Loops(*run_of(name))
    assert kept["totals"] == loops.totals()
    assert kept["energy_j"] == {"dendrite": 0, **{k: pytest.approx(v, rel=NEAR) for k, v in loops.energy().items()}}
    assert kept["seconds_per_step"]["simple"] == pytest.approx(loops.seconds(), rel=NEAR)


@functools.cache
def mapped(name):
    """A student's network on Loihi's mesh, in cores of so many neurons, and what one image costs there."""
    case = cases()["silent readout"]
    text = (PROFILES / "loihi1-sanafe.yaml").read_text(encoding="utf-8")
    limit = "neurons_per_core:\n    {nominal: 1024, low: 1024, high: 1024,"
    assert limit in text
    profile = parse_profile(text.replace(limit, limit.replace("1024", str(MAPPED[name]))), f"loihi1-sanafe, {name}")
    activity = measure_activity(case.graph, case.images[:1])
    counter = Counter(case.graph, check_mapped(map_network(case.graph, profile)))
    traffic = count_sums(counter, activity)
    latency = estimate_latency(case.graph, activity, counter)
    energy = estimate_energy(traffic, 1, counter.mapping, latency)
    return SimpleNamespace(
        graph=case.graph,
        counter=counter,
        traffic=traffic,
        latency=latency,
        energy=energy,
        sent={name: flags[:, 0] for name, flags in activity.probe.sent.items()},
    )


def replay_of(name):
    """The exchange of ``NAME, steady``, a mapped network that gets an image twice, or ``NAME, first``, an idle one."""
    name, kind = name.split(", ")
    ours = mapped(name)
    places, cores_per_tile = places_of(ours.graph, ours.counter.mapping)
    spikes = steady(ours.graph, ours.sent) if kind == "steady" else first_inference(ours.graph, ours.sent)
    return exchange(ours.graph, spikes, places, cores_per_tile=cores_per_tile)


def second_image(found):
    """Counts, energy and times of the steps of the second of two images: what one costs in a busy chip."""
    steps = cases()["silent readout"].graph.timesteps
    simple, detailed = found["simple"]["steps"], found["detailed"]["steps"]
    return {
        "totals": {name: sum(simple[name][steps:]) for name in found["simple"]["totals"]},
        "energy_j": {part: sum(joules[steps:]) for part, joules in simple["energy_j"].items()},
        "seconds_per_step": {"simple": simple["seconds"][steps:], "detailed": detailed["seconds"][steps:]},
    }


def check_costs(name, image, first):
    """Compare our traffic, energy and times with SANA-FE's, of the second image and of one in an idle chip."""
    ours = mapped(name)
    traffic, parts = ours.traffic, ours.energy.parts
    pixels = int(ours.sent["image"].sum())
    messages = traffic.messages.values()
    hops = [sum(int(getattr(one, axis).sum()) for one in messages) for axis in ("east_west", "north_south")]
    assert image["totals"] == {
        "synops": traffic.synops.sum(),
        "messages": sum(one.sent.sum() for one in messages),
        "fired": traffic.spikes.sum() + pixels,  # to SANA-FE, pixels are neurons that fire
        "updated": traffic.active.sum() + pixels,
        "hops": sum(hops),
        "hops_east_west": hops[0],
        "hops_north_south": hops[1],
    }
    absent = {kind for kind, count in image["totals"].items() if not count}
    assert absent == {"few cores": {"hops_north_south"}, "many cores": set()}[name]
    joules = image["energy_j"]
    of_neurons = ("neurons_active", "neurons_inactive", "spikes")
    assert parts["synapses"].nominal == pytest.approx(joules["synapse"], rel=NEAR)
    assert sum(parts[part].nominal for part in of_neurons) == pytest.approx(joules["soma"], rel=NEAR)
    assert parts["messages"].nominal + parts["hops"].nominal == pytest.approx(joules["network"], rel=NEAR)
    assert ours.energy.dynamic.nominal == pytest.approx(joules["total"], rel=NEAR)
    times = image["seconds_per_step"]
    assert [step.seconds for step in ours.latency.steps] == pytest.approx(times["simple"], rel=NEAR)
    assert ours.latency.first_output.nominal == pytest.approx(sum(first["simple"]), rel=NEAR)
    pairs = (ours.latency.per_inference, times), (ours.latency.first_output, first)
    slower = [sum(theirs["detailed"]) / estimate.nominal for estimate, theirs in pairs]
    assert all(1 < factor < SLOWER[name] for factor in slower), slower


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_network_costs_what_sanafe_says(name, known):
    found, ours = known(f"{name}, first"), mapped(name)
    first = {timing: found[timing]["steps"]["seconds"] for timing in ("simple", "detailed")}
    check_costs(name, second_image(known(f"{name}, steady")), first)
    assert found["tiles"] == ours.counter.mapping.tiles
    work = Clock(ours.graph, ours.counter).first_inference(ours.traffic)
    assert found["simple"]["steps"]["synops"] == (work.synops_conv + work.synops_dense).sum(axis=(1, 2)).tolist()
    assert found["simple"]["steps"]["messages"] == work.messages_in.sum(axis=(1, 2)).tolist()


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_network_costs_what_sanafe_printed(name):
    runs = json.loads(GOLDEN.read_text(encoding="utf-8"))["runs"]
    check_costs(name, runs[f"{name}, steady"], runs[f"{name}, first"]["seconds_per_step"])
    assert len(mapped(name).counter.mapping.cores) == {"few cores": 5, "many cores": 40}[name]


def test_what_sanafe_cannot_hold_is_refused():
    ours = mapped("few cores")
    places, _ = places_of(ours.graph, ours.counter.mapping)
    late = dataclasses.replace(ours.graph.projections[1], delay=3)
    graph = dataclasses.replace(ours.graph, projections=(ours.graph.projections[0], late, ours.graph.projections[2]))
    with pytest.raises(ReplayError, match=r"second.w: a spike takes \[3\] timesteps, and 1 in SANA-FE"):
        exchange(graph, steady(ours.graph, ours.sent), places)
    with pytest.raises(ReplayError, match="2 chips: SANA-FE's Loihi is one"):
        places_of(ours.graph, dataclasses.replace(ours.counter.mapping, chips=2))


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_synapses_are_those_of_plain_loops(name):
    graph = cases()["silent readout"].graph
    (projection,) = graph.into(name)
    source = graph.shape_of(projection.source)
    expected = [
        (np.ravel_multi_index(one, source), np.ravel_multi_index(other, graph.shape_of(name)))
        for one, other, weight in synapses_of(projection, source)
        if weight
    ]
    assert find_synapses(projection, source).tolist() == sorted(map(list, expected))
