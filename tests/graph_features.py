"""What a random graph uses, and what happens when it runs: so that tests can show that their graphs are not tame."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np

from stars_deploy.quantized import DECAY_ONE, STATE_LIMIT, VTH_NEVER, ConvProjection, DenseProjection, decayed
from stars_deploy.targets import reference


def observed_run(graph, images):
    """Run the reference; return its record and a Counter of what happened in it and of what `graph` has."""
    events = Counter()
    plain = reference.update

    def spy(population, u, v, activation, bias):
        current = decayed(u, population.decay_u) + (activation << 6)
        after = plain(population, u, v, activation, bias)
        potential = decayed(v, population.decay_v) + after[0] + (bias << 6)
        events["current wraps up"] += int((current <= -STATE_LIMIT).any())
        events["current wraps down"] += int((current > STATE_LIMIT).any())
        events["current outside after its wrap"] += int((np.abs(after[0]) > STATE_LIMIT).any())
        events["membrane clips above"] += int((potential >= STATE_LIMIT).any())
        events["membrane clips below"] += int((potential <= -STATE_LIMIT).any())
        threshold = np.left_shift(population.vth, 6)
        events["at the threshold"] += int((np.clip(potential, 1 - STATE_LIMIT, STATE_LIMIT - 1) == threshold).any())
        inexact = np.abs(v) * (DECAY_ONE - np.asarray(population.decay_v)) % DECAY_ONE != 0
        events["decay truncates a negative membrane"] += int((inexact & (v < 0)).any())
        inexact = np.abs(u) * (DECAY_ONE - np.asarray(population.decay_u)) % DECAY_ONE != 0
        events["decay truncates a negative current"] += int((inexact & (u < 0)).any())
        return after

    with mock.patch.object(reference, "update", spy):
        record = reference.run_reference(graph, images)
    for spikes in record.spikes.values():
        rate = spikes.mean()
        events["a silent population" if rate == 0 else "a population that fires"] += 1
        events["a population between 5 % and 95 %"] += int(0.05 < rate < 0.95)
    found = Counter({name: 1 for name, count in events.items() if count})
    found.update(name for name, has in features(graph, images).items() if has)
    return record, found


def features(graph, images):
    """Return which features of the IR `graph` and `images` use."""
    convs = [item for item in graph.projections if isinstance(item, ConvProjection)]
    denses = [item for item in graph.projections if isinstance(item, DenseProjection)]
    position = {graph.input.name: -1, **{p.name: index for index, p in enumerate(graph.populations)}}
    spans = [
        (position[item.target], position[item.source])
        for item in graph.projections
        if position[item.source] >= position[item.target]
    ]
    entering = [graph.into(p.name) for p in graph.populations]
    samples = np.moveaxis(images, 1, 0) if graph.input.over_time(images) else images
    thresholds = [int(value) for p in graph.populations for value in np.unique(p.vth)]
    largest = [_largest_sum(graph, item) for item in graph.projections]
    return {
        "sums past 2**24": any(1 << 24 < size <= 1 << 31 for size in largest),
        "sums past 2**31": any(size > 1 << 31 for size in largest),
        "more than 16 channels": any(p.shape[0] > 16 for p in graph.populations),
        "more than 64 channels": any(p.shape[0] > 64 for p in graph.populations),
        "conv and dense": bool(convs and denses),
        "stride": any(item.stride != (1, 1) for item in convs),
        "padding": any(item.padding != (0, 0) for item in convs),
        "dilation that matters": any(
            step > 1 and taps > 1
            for item in convs
            for step, taps in zip(item.dilation, item.weight.shape[2:], strict=True)
        ),
        "groups": any(item.groups > 1 and item.weight.shape[1] > 1 for item in convs),
        "depthwise": any(item.groups > 1 and item.weight.shape[1] == 1 for item in convs),
        "rectangular kernel": any(item.weight.shape[2] != item.weight.shape[3] for item in convs),
        "self loop": any(first == last for first, last in spans),
        "loop over several": any(first < last for first, last in spans),
        "overlapping loops": any(a < c <= b < d for a, b in spans for c, d in spans),
        "conv loop": any(position[item.source] >= position[item.target] for item in convs),
        "loop with a synaptic delay": any(
            not isinstance(item.delay, int) for item in denses if position[item.source] >= position[item.target]
        ),
        "scalar delay": any(isinstance(item.delay, int) and item.delay > 1 for item in graph.projections),
        "axonal delay": any(
            not isinstance(item.delay, int) and len(item.delay) > 1 and (item.delay == item.delay[0]).all()
            for item in denses
        ),
        "synaptic delay": any(
            not isinstance(item.delay, int) and (item.delay != item.delay[0]).any() for item in denses
        ),
        "delay past the end": any(np.max(item.delay) >= graph.timesteps for item in graph.projections),
        "decay for each neuron": any(np.ndim(p.decay_u) or np.ndim(p.decay_v) for p in graph.populations),
        "current leaks": any(p.leaks_current for p in graph.populations),
        "current never leaks": any(np.array_equal(p.decay_u, 0) for p in graph.populations),
        "bias at its limit": any(p.bias.size and np.abs(p.bias).max() >= (1 << 15) - 1 for p in graph.populations),
        "no bias": any(not p.bias.any() for p in graph.populations),
        "threshold for each neuron": any(np.ndim(p.vth) for p in graph.populations),
        "threshold 0": 0 in thresholds,
        "threshold maximal": VTH_NEVER - 1 in thresholds,
        "threshold never": VTH_NEVER in thresholds,
        "reset within the sample": any(
            sum(p.resets_at(step) for step in range(2, graph.timesteps + 1)) for p in graph.populations
        ),
        "residual sum": any(len(items) > 1 for items in entering),
        "residual sum of conv with conv": any(
            len([item for item in items if isinstance(item, ConvProjection)]) > 1 for items in entering
        ),
        "residual sum of different delays": any(len({np.max(item.delay) for item in items}) > 1 for items in entering),
        "all-zero weights": any(not item.weight.any() for item in graph.projections),
        "image as bias": bool(graph.input.biases),
        "frames over time": graph.input.over_time(images),
        "binary payload": graph.input.precision.bits == 1,
        "signed payload": not graph.input.biases and bool((images < 0).any()),
        "wide payload": not graph.input.biases and bool((np.abs(images) >= 1 << 16).any()),
        "empty input": not images.any(),
        "saturated input": bool((np.abs(images) >= graph.input.precision.high).all()),
        "batch of 1": len(samples) == 1,
        "distinct samples": len(samples) > 1 and len(np.unique(samples.reshape(len(samples), -1), axis=0)) > 1,
        "one neuron": any(p.size == 1 for p in graph.populations),
        "one timestep": graph.timesteps == 1,
        "flat input": len(graph.input.shape) == 1,
    }


def _largest_sum(graph, projection):
    value = max(abs(graph.input.precision.low), graph.input.precision.high) if projection.source == "image" else 1
    return value * int(np.abs(projection.weight).reshape(len(projection.weight), -1).sum(axis=1).max())
