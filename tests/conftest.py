"""Fixtures that several test files share, and the skips of the ``lava`` and ``shared`` marks."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

# Before torch is imported: two processes run the tests, and a second thread each would only be in the other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from environments import EnvironmentFailedError, make_peer_environment

# In CI the same examples every time: what is checked there shall not depend on luck. Elsewhere new ones each time.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# A shell starts its background jobs with SIGINT ignored, and every process below inherits that: without this, the tests
# that interrupt a build or Lava would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_collection_modifyitems(items):
    lava = sys.version_info < (3, 11) and importlib.util.find_spec("lava") is not None
    for item in items:
        if item.get_closest_marker("lava") and not lava:
            item.add_marker(pytest.mark.skip(reason="Lava is not installed here (Python 3.10 with the [lava] extra)"))
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="the data beside the founders' checkout are not here"))


@pytest.fixture(scope="session")
def shared():
    """The folder of data beside the repository (only for tests marked ``shared``)."""
    return SHARED


@pytest.fixture(scope="session")
def peer_python(request, tmp_path_factory):
    """A function from the name of another tool to the Python of its environment; it skips where there can be none.

    The environment is made once, in pytest's cache, or taken from the folder that STARS_PEERS names: one virtual
    environment for each tool.
    """

    def find(tool: str) -> Path:
        if given := os.environ.get("STARS_PEERS"):
            python = Path(given) / tool / "bin" / "python"
            if not python.exists():
                pytest.skip(f"STARS_PEERS={given} has no environment {tool}")
            return python
        cache = getattr(request.config, "cache", None)
        folder = Path(cache.mkdir("peers")) if cache else tmp_path_factory.mktemp("peers")
        try:
            return make_peer_environment(tool, folder)
        except EnvironmentFailedError as failure:
            reason = f"no environment for {tool}: {failure}"
            if os.environ.get("STARS_PEERS_REQUIRED"):  # .ci/run sets it where every tool can be had
                pytest.fail(reason)
            pytest.skip(reason)

    return find


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Results that commands keep stay out of the user's cache; compiled code stays where it is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_deploy.sweep.cache.default_folder", lambda: folder)
        yield


def random_images(graph, samples, seed=0):
    """Distinct random images, (samples, *input shape); the last is saturated."""
    precision = graph.input.precision
    images = np.random.default_rng(seed).integers(0, precision.high + 1, (samples, *graph.input.shape))
    if samples > 1:
        images[-1] = precision.high
    return images


@pytest.fixture(scope="session")
def make_images():
    return random_images


def conv(rng, source, shape, target, channels, **options):
    """A random convolution and the shape that it makes."""
    kernel = options.pop("kernel", (3, 3))
    groups = options.get("groups", 1)
    weight = rng.integers(-20, 21, (channels, shape[0] // groups, *kernel))
    projection = ConvProjection(name=f"{target}.w", source=source, target=target, weight=weight, **options)
    return projection, projection.output_shape(shape)


def dense(rng, source, shape, target, features, largest=40):
    """A random dense projection with weights of both signs."""
    weight = rng.integers(-largest, largest + 1, (features, int(np.prod(shape))))
    weight[0, 0], weight[-1, -1] = -largest, largest
    return DenseProjection(name=f"{target}.w", source=source, target=target, weight=weight)


def chain_of(seed, layers, shape=(2, 8, 5), timesteps=4, bits=4, classes=3, **dynamics):
    """A chain of convolutions (a dict of options each) with a dense readout; 4-bit images keep sums in range."""
    rng = np.random.default_rng(seed)
    source, size = "image", shape
    populations, projections = [], []
    for index, options in enumerate(layers):
        name = f"conv{index}"
        projection, size = conv(rng, source, size, name, **options)
        # The first threshold stands against graded input, the others against single spikes.
        threshold = 400 if index == 0 else 40
        bias = rng.integers(-20, 60, size)
        state = {"decay_u": 4096, "decay_v": 1024, "vth": threshold, **dynamics}
        populations.append(Population(name=name, shape=size, bias=bias, scale=0.5 + index, **state))
        projections.append(projection)
        source = name
    projections.append(dense(rng, source, size, "readout", classes))
    populations.append(Population(name="readout", shape=(classes,), bias=rng.integers(-30, 30, classes), scale=3.25))
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=shape, precision=Precision(bits=bits, signed=False), scale=15.0),
        populations=tuple(populations),
        projections=tuple(projections),
        timesteps=timesteps,
        labels=tuple(f"class {index}" for index in range(classes)),
    )


@pytest.fixture(scope="session")
def make_chain():
    """``make_chain(seed, [conv options, ...], **options)``: a random conv chain with a dense readout."""
    return chain_of


@pytest.fixture(scope="session")
def small_chain():
    """Two convolutions that are not square in anything, bias per neuron, and a dense readout."""
    layers = [
        {"channels": 4, "kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"channels": 6, "kernel": (2, 3), "padding": (0, 1), "groups": 2},
    ]
    return chain_of(7, layers)
