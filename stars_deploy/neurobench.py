"""NeuroBench's metrics of a network, from counts that are made anyway.

NeuroBench (Yik et al., "The neurobench framework for benchmarking neuromorphic computing algorithms and systems",
Nature Communications 16, 1545, 2025) measures a PyTorch model while it runs. What is computed here is what NeuroBench
2.3.0 prints of the same network in snnTorch: ``tests/test_neurobench.py`` runs both.
"""

from __future__ import annotations

from dataclasses import dataclass

from stars_deploy.errors import ConfigError
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation
from stars_deploy.synops import connections


@dataclass(frozen=True, kw_only=True)
class NeuroBenchMetrics:
    """Four metrics of NeuroBench 2.3.0; the first three for one inference, as means over the evaluation set.

    Parameters
    ----------
    effective_acs : float
        ``SynapticOperations["Effective_ACs"]``: synapses with a non-zero weight that a non-zero value of a binary
        input meets, summed over layers and timesteps [synops].
    effective_macs : float
        ``SynapticOperations["Effective_MACs"]``: the same where the input of the layer is not binary: here that can
        only be the first layer's, a graded image [synops].
    dense : float
        ``SynapticOperations["Dense"]``: every synapse, zero weights included, once for each timestep [synops]. Not the
        ``dense_synops`` of our counts, which only spikes and non-zero pixels cause.
    activation_sparsity : float
        ``ActivationSparsity``: the share of neurons and timesteps without a spike. All populations count, one that
        never fires as well; the image does not.
    """

    effective_acs: float
    effective_macs: float
    dense: float
    activation_sparsity: float


def neurobench_metrics(graph: QuantizedGraph, evaluation: Evaluation) -> NeuroBenchMetrics:
    """Return what NeuroBench 2.3.0 would print.

    Synapses into the padding do not exist and biases are not counted, there as here. NeuroBench takes a layer's input
    for binary if a batch of it holds nothing but -1, 0 and 1, and decides so again at every timestep; here the
    precision of the input decides: one bit is binary. The two differ where an image of more bits holds nothing else, as
    one that is all zero does. A network whose image sets biases has no synapses of its input.

    Parameters
    ----------
    graph : QuantizedGraph
    evaluation : Evaluation
        Of `graph`, at any number of timesteps.

    Raises
    ------
    ConfigError
        If `evaluation` is one of another network.
    """
    sizes = {population.name: population.size for population in graph.populations}
    if {layer.name: layer.neurons for layer in evaluation.layers} != sizes:
        got = {layer.name: layer.neurons for layer in evaluation.layers}
        raise ConfigError("evaluation", f"layers {got}", f"those of the graph, {sizes}", "evaluate this graph")
    from_spikes = sum(sum(layer.spike_synops_per_step) for layer in evaluation.layers)
    from_input = sum(sum(layer.input_synops_per_step) for layer in evaluation.layers)
    binary = graph.input.precision.bits == 1
    synapses = sum(connections(projection, graph.shape_of(projection.source)) for projection in graph.projections)
    spikes = sum(sum(layer.spikes_per_step) for layer in evaluation.layers)
    activations = evaluation.timesteps * sum(sizes.values())
    return NeuroBenchMetrics(
        effective_acs=from_spikes + (from_input if binary else 0.0),
        effective_macs=0.0 if binary else from_input,
        dense=float(evaluation.timesteps * synapses),
        activation_sparsity=1.0 - spikes / activations,
    )
