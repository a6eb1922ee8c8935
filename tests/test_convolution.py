"""``correlate`` against a loop over single synapses and against torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.convolution import correlate


@st.composite
def convolutions(draw):
    """Values, a kernel and options, with nothing square unless by chance."""
    groups = draw(st.integers(1, 3))
    out, per_group = groups * draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, stride, padding, dilation = ((draw(st.integers(low, 3)), draw(st.integers(low, 3))) for low in (1, 1, 0, 1))
    size = [
        draw(st.integers(max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis]), 9)) for axis in (0, 1)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(-200, 200, (draw(st.integers(1, 3)), groups * per_group, *size)).astype(float)
    weight = rng.integers(-128, 128, (out, per_group, *kernel)).astype(float)
    return values, weight, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def looped(values, weight, stride, padding, dilation, groups):
    """One synapse after the other; a position outside the image holds 0."""
    out, per_group, rows, columns = weight.shape
    height, width = (
        (values.shape[axis + 2] + 2 * padding[axis] - dilation[axis] * (weight.shape[axis + 2] - 1) - 1) // stride[axis]
        + 1
        for axis in (0, 1)
    )
    result = np.zeros((len(values), out, height, width))
    for place in np.ndindex(*result.shape):
        sample, channel, y, x = place
        first = channel // (out // groups) * per_group
        for c, j, i in np.ndindex(per_group, rows, columns):
            source_y = y * stride[0] - padding[0] + j * dilation[0]
            source_x = x * stride[1] - padding[1] + i * dilation[1]
            if 0 <= source_y < values.shape[2] and 0 <= source_x < values.shape[3]:
                result[place] += weight[channel, c, j, i] * values[sample, first + c, source_y, source_x]
    return result


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_equals_a_loop_over_synapses(case):
    values, weight, options = case
    np.testing.assert_array_equal(correlate(values, weight, **options), looped(values, weight, **options))


@settings(max_examples=100, deadline=None)
@given(convolutions())
def test_equals_torch(case):
    torch = pytest.importorskip("torch")
    values, weight, options = case
    expected = torch.nn.functional.conv2d(torch.from_numpy(values), torch.from_numpy(weight), **options)
    np.testing.assert_array_equal(correlate(values, weight, **options), expected.numpy())


def test_default_options_are_those_of_a_plain_convolution():
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 3, 2))
    result = correlate(values, weight)
    assert result.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(result[1, 1, 2, 0], (values[1, :, 2:5, 0:2] * weight[1]).sum(), rtol=1e-12)
