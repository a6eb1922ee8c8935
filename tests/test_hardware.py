from importlib import resources

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stars_deploy.errors import ArtifactError, ConfigError
from stars_deploy.hardware import (
    PROFILES,
    Constant,
    Interval,
    estimate_cores,
    load_profile,
    over_corners,
    parse_profile,
    total_of,
)
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput

BUILT_IN = {name: (resources.files("stars_deploy") / "profiles" / f"{name}.yaml").read_text() for name in PROFILES}


def constants(content, path=""):
    """Yield (key path, mapping) of every constant in a profile's YAML content."""
    for key, value in content.items():
        if isinstance(value, dict):
            here = f"{path}.{key}" if path else key
            yield from [(here, value)] if "nominal" in value else constants(value, here)


ALL_KEYS = [path for path, _ in constants(yaml.safe_load(BUILT_IN["loihi2"]))]


def changed(path, **values):
    """Return loihi2's YAML with fields of one constant replaced; None removes a field."""
    content = yaml.safe_load(BUILT_IN["loihi2"])
    constant = dict(constants(content))[path]
    for field, value in values.items():
        if value is None:
            del constant[field]
        else:
            constant[field] = value
    return yaml.safe_dump(content)


def layered_graph(hidden=(2, 50, 50), weight_bits=8):
    precision = Precision(bits=weight_bits, signed=True)
    size = int(np.prod(hidden))
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, *hidden[1:])),
        populations=(
            Population(name="conv", shape=hidden, vth=5, bias=np.zeros(hidden, int)),
            Population(name="out", shape=(200,), bias=np.zeros(200, int)),
        ),
        projections=(
            ConvProjection(
                name="c", source="input", target="conv", weight=np.ones((hidden[0], 1, 1, 1), int), precision=precision
            ),
            DenseProjection(
                name="d", source="conv", target="out", weight=np.ones((200, size), int), precision=precision
            ),
        ),
        timesteps=2,
    )


@pytest.mark.parametrize("name", PROFILES)
def test_built_in_profiles_state_a_source_for_every_constant(name):
    profile = load_profile(name)
    assert profile.name == name
    found = dict(constants(profile.model_dump()))
    assert len(found) == 17
    assert all(constant["source"] and constant["unit"] for constant in found.values())


def test_built_in_constants_are_those_of_the_literature():
    davies, second = load_profile("loihi1"), load_profile("loihi2")
    assert davies.energy.synapse.nominal == 23.6
    assert (davies.energy.neuron_active.nominal, davies.energy.neuron_inactive.nominal) == (81, 52)
    assert (davies.time.synapse.nominal, davies.time.neuron_active.nominal) == (3.5, 8.4)
    assert (davies.limits.neurons_per_core.nominal, davies.limits.cores_per_chip.nominal) == (1024, 128)
    assert (second.time.synapse.low, second.time.synapse.nominal, second.time.synapse.high) == (0.70, 0.90, 1.03)
    assert (second.limits.neurons_per_core.nominal, second.limits.synaptic_words_per_core.nominal) == (4095, 12000)
    assert second.energy.synapse.evidence == "estimate"  # no energy of Loihi 2 was ever published


def test_a_profile_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_profile("loihi1").name = "mine"


def test_a_file_is_read_like_a_built_in(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(changed("energy.synapse", nominal=20.0))
    assert load_profile(path).energy.synapse.nominal == 20.0
    assert load_profile(str(path)).time == load_profile("loihi2").time


@pytest.mark.parametrize("name", ["loihi3", "", "Loihi1", "profiles/loihi1", "loihi1.json"])
def test_unknown_names_are_told_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"loihi1, loihi2, or a \.yaml file"):
        load_profile(name)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        load_profile(tmp_path / "empty.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_profile(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "text", ["a: [1", "{1: 2, ? [3] : 4}", "!!python/object/apply:os.getcwd []", "x: &x [*x", "\0"]
)
def test_what_is_not_yaml_is_refused(text):
    with pytest.raises(ConfigError, match=r"mine\.yaml: "):
        parse_profile(text, "mine.yaml")


@pytest.mark.parametrize("text", ["[]", "7", "null", "name: x"])
def test_what_is_not_a_profile_is_refused(text):
    with pytest.raises(ConfigError, match=r"mine\.yaml: "):
        parse_profile(text, "mine.yaml")


def test_a_key_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"\['phases'\] given twice"):
        parse_profile(BUILT_IN["loihi1"] + "\nphases: overlapped\n", "mine.yaml")


EVERYWHERE = [("nominal", -1.0), ("unit", "furlongs"), ("low", None)]
ONCE = [
    ("low", -0.5),
    ("high", float("inf")),
    ("nominal", float("nan")),
    ("nominal", "5"),  # text, in the range of the number it looks like
    ("nominal", True),
    ("low", 5.5),
    ("high", 4.5),
    ("unit", None),
    ("source", ""),
    ("evidence", "rumour"),
]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [(path, *bad) for path in ALL_KEYS for bad in EVERYWHERE] + [("energy.hops_per_message", *bad) for bad in ONCE],
)
def test_a_bad_constant_is_refused_with_its_path(path, field, value):
    with pytest.raises(ConfigError) as caught:
        parse_profile(changed(path, **{field: value}), "mine.yaml")
    assert caught.value.where.startswith(f"mine.yaml: {path}")
    assert caught.value.allowed
    assert caught.value.exit_code == 2


def test_messages_say_what_is_allowed():
    with pytest.raises(ConfigError, match=r"energy\.synapse: .*unit 'pJ', not 'nJ'"):
        parse_profile(changed("energy.synapse", unit="nJ"), "mine.yaml")
    with pytest.raises(ConfigError, match=r"time\.barrier: .*low <= nominal <= high, not low 300"):
        parse_profile(changed("time.barrier", low=300), "mine.yaml")
    with pytest.raises(ConfigError, match=r"limits\.cores_per_chip: .*whole numbers of at least 1"):
        parse_profile(changed("limits.cores_per_chip", nominal=120.5), "mine.yaml")
    with pytest.raises(ConfigError, match=r"limits\.neurons_per_core: .*whole numbers of at least 1"):
        parse_profile(changed("limits.neurons_per_core", nominal=0, low=0), "mine.yaml")
    with pytest.raises(ConfigError, match=r"model_error\.latency: .*nominal 1"):
        parse_profile(changed("model_error.latency", nominal=1.1), "mine.yaml")


def test_missing_and_unknown_keys_are_named():
    content = yaml.safe_load(BUILT_IN["loihi1"])
    del content["energy"]["hop"]
    with pytest.raises(ConfigError, match=r"energy\.hop: missing"):
        parse_profile(yaml.safe_dump(content), "mine.yaml")
    content = yaml.safe_load(BUILT_IN["loihi1"])
    content["energy"]["luck"] = content["energy"]["hop"]
    with pytest.raises(ConfigError, match=r"energy\.luck"):
        parse_profile(yaml.safe_dump(content), "mine.yaml")


def test_cores_by_hand():
    # conv: 5,000 neurons; 2 weights of 8 bit -> 1 word. out: 200 neurons; 200 x 5,000 weights -> 125,000 words.
    first, second = (estimate_cores(layered_graph(), load_profile(name)) for name in PROFILES)
    assert [(layer.neurons, layer.synaptic_words) for layer in first.layers] == [(5000, 1), (200, 125_000)]
    assert [layer.cores for layer in first.layers] == [5, 8]  # 5000/1024; 125000/16384
    assert [layer.cores for layer in second.layers] == [2, 11]  # 5000/4095; 125000/12000
    assert (first.cores, first.chips) == (13, 1)
    assert first.utilisation["cores_of_chips"] == 13 / 128
    assert first.utilisation["neurons_of_cores"] == 5200 / (13 * 1024)
    assert first.utilisation["synaptic_memory_of_cores"] == 125_001 / (13 * 16384)
    assert "estimate" in first.note


def test_narrower_weights_need_fewer_words():
    assert estimate_cores(layered_graph(weight_bits=4), load_profile("loihi1")).layers[1].synaptic_words == 62_500


def test_chips_are_whole():
    profile = parse_profile(changed("limits.cores_per_chip", nominal=12, low=12), "mine.yaml")
    estimate = estimate_cores(layered_graph(), profile)
    assert (estimate.cores, estimate.chips) == (13, 2)
    assert estimate.utilisation["cores_of_chips"] == 13 / 24


@given(*[st.floats(0, 1e6)] * 6, st.floats(0, 1), st.floats(1, 9))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_intervals_stay_ordered(a, b, c, d, e, f, low, high):
    def interval(*values):
        smallest, middle, largest = sorted(values)
        return Interval(nominal=middle, low=smallest, high=largest)

    factor = Constant(nominal=1, low=low, high=high, unit="1", source="test", evidence="estimate")
    for result in (total_of(interval(a, b, c), interval(d, e, f)), interval(a, b, c).widened(factor)):
        assert result.low <= result.nominal <= result.high
    widened = interval(a, b, c).widened(factor)
    assert widened.low <= sorted((a, b, c))[1] * low
    assert widened.high >= sorted((a, b, c))[1] * high
    assert over_corners({"nominal": 2.0, "low": 1.0, "high": 3.0}.__getitem__) == Interval(nominal=2, low=1, high=3)
