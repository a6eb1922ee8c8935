"""The neuron over all timesteps against norse's own cells: spikes, and gradients by norse's own autograd."""

import pytest
import torch

from stars_deploy.errors import ConfigError
from stars_deploy.fused import SURROGATES, find_surrogate, fire
from stars_deploy.spiking import NeuronModel, SpikingLayer

WIDTHS = (0.5, 1.0, 2.5)


def currents(timesteps=6, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(timesteps, 3, 4, 5, generator=generator, dtype=dtype) * 0.8 + 0.4


def stepped(current, decay, surrogate, width):
    """Norse's cells, a timestep at a time, in the precision of the current; potentials before the reset as well."""
    model = NeuronModel(decay=decay, surrogate=surrogate, surrogate_width=width)
    layer = SpikingLayer(model)
    parameters = layer.cell.p
    layer.cell.p = parameters._replace(
        **{name: value.double() for name, value in parameters._asdict().items() if isinstance(value, torch.Tensor)}
    )
    return layer.stepped(current)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("width", WIDTHS)
def test_spikes_and_gradients_are_norses(surrogate, decay, width):
    weights = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, expected = currents().requires_grad_(True), currents().requires_grad_(True)
    spikes, _ = fire(found, decay, surrogate, width)
    norse = stepped(expected, decay, surrogate, width)
    assert torch.equal(spikes, norse)
    assert 0.1 < float(spikes.mean()) < 0.9
    (spikes * weights).sum().backward()
    (norse * weights).sum().backward()
    assert torch.allclose(found.grad, expected.grad, atol=1e-6)
    assert float(found.grad.abs().max()) > 0.1


def plain(current, decay, surrogate, width):
    """The same neuron in plain autograd, with the surrogate's derivative put in by hand."""
    spikes, potentials, rest = [], [], torch.zeros_like(current[0])
    for step in current:
        v = decay * rest + step
        slope = SURROGATES[surrogate]((v - 1).detach(), width)
        hard = (v > 1).to(v.dtype)
        spike = hard + slope * (v - v.detach())
        spikes.append(spike)
        potentials.append(v)
        rest = (1 - spike) * v
    return torch.stack(spikes), torch.stack(potentials)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("used", ["spikes", "potentials", "both"])
def test_gradients_through_potentials(surrogate, used):
    weights = torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = []
    for function in (fire, plain):
        current = currents().requires_grad_(True)
        spikes, potentials = function(current, 0.7, surrogate, 1.5)
        loss = 0.0
        if used != "potentials":
            loss = loss + (spikes * weights[0]).sum()
        if used != "spikes":
            loss = loss + (potentials * weights[1]).sum()
        loss.backward()
        gradients.append(current.grad)
    assert torch.allclose(*gradients, atol=1e-9)


def test_potentials_are_those_before_the_reset():
    spikes, potentials = fire(torch.tensor([[0.6], [0.9], [0.4]]), 0.5, "triangle", 1.0)
    assert potentials.flatten().tolist() == pytest.approx([0.6, 1.2, 0.4])
    assert spikes.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("timesteps", [1, 2])
def test_currents_of_any_layout(timesteps):
    base = currents(1, torch.float32)
    expanded = base.expand(timesteps, *base.shape[1:])
    crossed = currents(timesteps, torch.float32).transpose(2, 3)
    for current in (expanded, crossed):
        leaf = current.clone().contiguous().requires_grad_(True)
        viewed = current.clone(memory_format=torch.preserve_format).requires_grad_(True)
        for given in (leaf, viewed):
            fire(given, 0.9, "triangle", 1.0)[0].sum().backward()
        assert torch.equal(fire(current, 0.9, "triangle", 1.0)[0], fire(current.contiguous(), 0.9, "triangle", 1.0)[0])
        assert torch.allclose(leaf.grad, viewed.grad)


def test_gradient_of_an_expanded_current_is_summed():
    base = currents(1, torch.float64)[0].requires_grad_(True)
    fire(base.expand(4, *base.shape), 0.5, "triangle", 1.0)[0].sum().backward()
    copies = base.detach().expand(4, *base.shape).clone().requires_grad_(True)
    fire(copies, 0.5, "triangle", 1.0)[0].sum().backward()
    assert torch.allclose(base.grad, copies.grad.sum(0))


def test_currents_are_not_written_to_and_need_no_gradient():
    current = currents(dtype=torch.float32)
    before = current.clone()
    with torch.no_grad():
        spikes, potentials = fire(current, 0.9, "triangle", 1.0)
    assert torch.equal(current, before)
    assert not spikes.requires_grad
    assert not potentials.requires_grad


def test_unknown_surrogates_are_refused():
    with pytest.raises(
        ConfigError, match=r"student\.surrogate: atan; allowed: triangle, super, tanh, circ, heavi_erfc"
    ):
        find_surrogate("atan")
    with pytest.raises(ConfigError, match=r"student\.surrogate"):
        NeuronModel(surrogate="atan")
