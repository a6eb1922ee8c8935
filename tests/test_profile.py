"""Chip profiles: what the built-in ones hold, and what is refused."""

import copy

import numpy as np
import pytest
import yaml
from chips import BUILT_IN, barrier, chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stars_deploy.errors import ArtifactError, ConfigError
from stars_deploy.hardware import PROFILES, Constant, Interval, load_profile, over_corners, parse_profile, total_of


def constants(content, path=""):
    """Yield (key path, mapping) of every constant in a profile's YAML content."""
    for key, value in content.items():
        if isinstance(value, dict):
            here = f"{path}.{key}" if path else str(key)
            yield from [(here, value)] if "nominal" in value else constants(value, here)


CONTENT = {name: yaml.safe_load(text) for name, text in BUILT_IN.items()}
ALL_KEYS = [path for path, _ in constants(CONTENT["loihi2"])]
EVIDENCE = {"measured", "fitted", "published", "estimate"}


def changed(path, base="loihi2", **values):
    """Return a profile's YAML with fields of one constant replaced; None removes a field."""
    content = copy.deepcopy(CONTENT[base])
    *parents, last = path.split(".")
    section = content
    for parent in parents:
        section = section[int(parent) if parent.isdigit() else parent]
    last = int(last) if last.isdigit() else last
    constant = section[last] = dict(section[last])  # YAML shares some by an anchor: only this one changes
    for field, value in values.items():
        if value is None:
            del constant[field]
        else:
            constant[field] = value
    return yaml.safe_dump(content, sort_keys=False)


def without(path, base="loihi1"):
    """Return a profile's YAML without the key at `path`."""
    content = yaml.safe_load(BUILT_IN[base])
    *parents, last = path.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    del section[last]
    return yaml.safe_dump(content, sort_keys=False)


# ---------------------------------------------------------------- built-in profiles


@pytest.mark.parametrize("name", PROFILES)
def test_built_in_profiles_state_a_source_for_every_constant(name):
    profile = load_profile(name)
    assert profile.name == name
    found, in_file = dict(profile.constants()), dict(constants(yaml.safe_load(BUILT_IN[name])))
    assert list(found) == list(in_file)
    assert len(found) == {"loihi1": 30, "loihi2": 29, "loihi1-sanafe": 32}[name]
    for key, constant in found.items():
        assert len(constant.source) >= 9, key
        assert constant.unit, key
        assert constant.evidence in EVIDENCE, key
        assert constant.model_dump() == in_file[key], key
    assert profile.mesh.source and profile.description


def test_built_in_constants_are_those_of_the_literature():
    davies, second = load_profile("loihi1"), load_profile("loihi2")
    for energy in (davies.energy.synapse_conv, davies.energy.synapse_dense):
        assert energy.nominal == 23.6
    assert (davies.energy.neuron_active.nominal, davies.energy.neuron_inactive.nominal) == (81, 52)
    assert (davies.energy.message.nominal, davies.energy.spike.nominal) == (1.7, 0)
    assert (davies.energy.hop_east_west.nominal, davies.energy.hop_north_south.nominal) == (3.0, 4.0)
    assert (davies.time.synapse_conv.nominal, davies.time.synapse_dense.nominal) == (3.5, 3.5)
    assert (davies.time.neuron_active.nominal, davies.time.neuron_inactive.nominal) == (8.4, 5.3)
    assert davies.time.message_out.nominal == 2.1
    assert [davies.time.barrier.at("nominal", tiles) for tiles in (1, 32)] == [113, 465]
    assert 1 / davies.time.link.nominal == pytest.approx(3.44, rel=3e-3)  # Gspike/s
    assert (davies.limits.neurons_per_core.nominal, davies.limits.cores_per_chip.nominal) == (1024, 128)
    assert davies.limits.synaptic_words_per_core.nominal * 64 == 128 * 1024 * 8  # 128 KB
    assert (davies.limits.axons_in_per_core.nominal, davies.limits.axons_out_per_core.nominal) == (4096, 4096)
    assert davies.static_power_per_chip.nominal == 0.0962
    for time in (second.time.synapse_conv, second.time.synapse_dense):
        assert (time.low, time.nominal, time.high) == (0.70, 0.90, 1.03)
    assert (second.time.neuron_active.nominal, second.time.neuron_inactive.nominal) == (4.2, 2.65)
    assert second.time.barrier.at("nominal", 30) == 200
    assert (second.limits.neurons_per_core.nominal, second.limits.synaptic_words_per_core.nominal) == (4095, 12000)
    assert (second.limits.cores_per_chip.nominal, second.limits.weight_bits.nominal) == (120, 8)
    assert (second.energy.synapse_conv.low, second.energy.synapse_conv.nominal) == (17.7, 23.6)
    assert second.static_power_per_chip.nominal == pytest.approx((0.232 + 0.282) / 2)
    # No energy of Loihi 2 was ever published.
    assert {constant.evidence for key, constant in second.constants() if key.startswith("energy.")} == {"estimate"}
    assert (davies.phases, second.phases) == ("sequential", "overlapped")


def test_sanafe_constants_are_those_of_its_file():
    """As in SANA-FE 2.2.9's loihi.yaml; a neuron that is updated pays its access and its update."""
    profile = load_profile("loihi1-sanafe")
    energy, time = profile.energy, profile.time
    assert (energy.synapse_conv.nominal, energy.synapse_dense.nominal) == (24.0, 35.5)
    assert (energy.neuron_inactive.nominal, energy.neuron_active.nominal) == (51.2, pytest.approx(51.2 + 21.6))
    assert (energy.spike.nominal, energy.message.nominal) == (69.3, 111)
    assert (energy.hop_east_west.nominal, energy.hop_north_south.nominal) == (3.0, 4.2)
    assert (time.synapse_conv.nominal, time.synapse_dense.nominal) == (3.1, 3.8)
    assert (time.neuron_inactive.nominal, time.neuron_active.nominal) == (6.0, pytest.approx(6.0 + 3.7))
    assert (time.spike.nominal, time.message_out.nominal, time.message_in.nominal) == (30, 5.1, 16)
    assert time.link.nominal == 0
    table = {1: 600, 2: 1000, 3: 1000, 4: 1400, 28: 1400, 29: 1800, 32: 1800}
    assert {tiles: time.barrier.at("nominal", tiles) for tiles in table} == table
    assert (profile.mesh.columns, profile.mesh.rows, profile.mesh.cores_per_tile) == (8, 4, 4)
    assert profile.limits.neurons_per_core.nominal == 1024
    assert (profile.model_error.dynamic_energy.low, profile.model_error.dynamic_energy.high) == (0.88, 1.12)
    assert (profile.model_error.latency.low, profile.model_error.latency.high) == (0.75, 1.25)


def test_tiles_of_a_chip_hold_its_cores():
    assert [load_profile(name).tiles_per_chip for name in PROFILES] == [32, 30, 32]
    assert chip("loihi2", {"limits.cores_per_chip": 117}).tiles_per_chip == 30


def test_a_profile_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_profile("loihi1").name = "mine"


# ---------------------------------------------------------------- files


def test_a_file_is_read_like_a_built_in(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(changed("energy.synapse_conv", nominal=20.0))
    assert load_profile(path).energy.synapse_conv.nominal == 20.0
    assert load_profile(path).energy.synapse_dense.nominal == 23.6
    assert load_profile(str(path)).time == load_profile("loihi2").time


@pytest.mark.parametrize("name", ["loihi3", "", "Loihi1", "profiles/loihi1", "loihi1.json"])
def test_unknown_names_are_told_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"loihi1, loihi2, loihi1-sanafe, or a \.yaml file"):
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


# ---------------------------------------------------------------- bad constants


EVERYWHERE = [("nominal", -1.0), ("unit", "furlongs"), ("unit", None), ("low", None)]
ONCE = [
    ("low", -0.5),
    ("high", float("inf")),
    ("nominal", float("nan")),
    ("nominal", "5"),  # text, in the range of the number it looks like
    ("nominal", True),
    ("nominal", None),
    ("low", 3.5),
    ("high", 2.5),
    ("unit", ""),
    ("unit", 1),
    ("source", ""),
    ("source", None),
    ("evidence", "rumour"),
    ("evidence", None),
    ("colour", "blue"),
]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [(path, *bad) for path in ALL_KEYS for bad in EVERYWHERE] + [("energy.hop_east_west", *bad) for bad in ONCE],
)
def test_a_bad_constant_is_refused_with_its_path(path, field, value):
    with pytest.raises(ConfigError) as caught:
        parse_profile(changed(path, **{field: value}), "mine.yaml")
    assert caught.value.where.startswith(f"mine.yaml: {path}")
    assert caught.value.allowed and caught.value.remedy
    assert caught.value.exit_code == 2


def test_messages_say_what_is_allowed():
    with pytest.raises(ConfigError, match=r"energy\.synapse_conv: .*unit 'pJ', not 'nJ'"):
        parse_profile(changed("energy.synapse_conv", unit="nJ"), "mine.yaml")
    with pytest.raises(ConfigError, match=r"time\.barrier\.tiles\.1: .*low <= nominal <= high, not low 300"):
        parse_profile(changed("time.barrier.tiles.1", low=300), "mine.yaml")
    with pytest.raises(ConfigError, match=r"limits\.cores_per_chip: .*whole numbers of at least 1"):
        parse_profile(changed("limits.cores_per_chip", nominal=120.5), "mine.yaml")
    with pytest.raises(ConfigError, match=r"limits\.neurons_per_core: .*whole numbers of at least 1"):
        parse_profile(changed("limits.neurons_per_core", nominal=0, low=0), "mine.yaml")
    with pytest.raises(ConfigError, match=r"model_error\.latency: .*nominal 1"):
        parse_profile(changed("model_error.latency", nominal=1.1), "mine.yaml")


@pytest.mark.parametrize("name", [key for key in ALL_KEYS if key.startswith("limits.")])
@pytest.mark.parametrize("field", ["low", "nominal", "high"])
def test_counts_are_whole_at_both_ends(name, field):
    limit = dict(load_profile("loihi2").constants())[name]
    ends = {"low": limit.low - 0.5, "nominal": limit.nominal, "high": limit.high + 0.5}
    if field == "nominal":
        ends = {"low": limit.low, "nominal": limit.low + 0.5, "high": limit.high + 1}
    bad = {field: ends[field], "high": max(limit.high, ends["high"] if field != "low" else 0)}
    with pytest.raises(ConfigError, match=rf"{name}: .*whole numbers of at least 1"):
        parse_profile(changed(name, **bad), "mine.yaml")


@pytest.mark.parametrize(
    "path", ["energy.hop_east_west", "time.barrier", "time.barrier.between", "mesh.columns", "mesh.source", "phases",
             "name", "storage", "static_power_per_chip", "model_error.latency", "limits.message_bits"]
)  # fmt: skip
def test_missing_keys_are_named(path):
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {path}: missing"):
        parse_profile(without(path), "mine.yaml")


@pytest.mark.parametrize("section", ["energy", "time", "limits", "mesh", "storage", "model_error", ""])
def test_unknown_keys_are_named(section):
    content = yaml.safe_load(BUILT_IN["loihi1"])
    (content[section] if section else content)["luck"] = content["energy"]["spike"]
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {section + '.' if section else ''}luck"):
        parse_profile(yaml.safe_dump(content, sort_keys=False), "mine.yaml")


def test_a_key_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"\['phases'\] given twice"):
        parse_profile(BUILT_IN["loihi1"] + "\nphases: overlapped\n", "mine.yaml")
    twice = BUILT_IN["loihi2"].replace("low: 0.70,", "low: 0.70, low: 0.80,")
    with pytest.raises(ConfigError, match=r"\['low'\] given twice"):
        parse_profile(twice, "mine.yaml")
    barriers = BUILT_IN["loihi1"].replace("      32:\n", "      1:\n")
    with pytest.raises(ConfigError, match=r"\['1'\] given twice"):
        parse_profile(barriers, "mine.yaml")


@pytest.mark.parametrize("number", [0, -1, 1025, 2.0, "8", True])
@pytest.mark.parametrize("axis", ["columns", "rows", "cores_per_tile"])
def test_a_mesh_is_of_whole_numbers(axis, number):
    with pytest.raises(ConfigError, match=rf"mesh\.{axis}"):
        chip("loihi1", {f"mesh.{axis}": number})


def test_cores_must_have_places():
    with pytest.raises(ConfigError, match=r"limits\.cores_per_chip of at most the mesh's 124 places"):
        chip("loihi1", {"mesh.columns": 31, "mesh.rows": 1})
    assert chip("loihi1", {"mesh.columns": 32, "mesh.rows": 1}).tiles_per_chip == 32


# ---------------------------------------------------------------- the barrier


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"tiles_2": 5.0},
        {"tiles_0": 1.0, "tiles_1": 5.0},
        {"tiles_2": 5.0, "tiles_1": 1.0},
        {"tiles_1": 1.0, "tiles_8": 2.0, "tiles_4": 3.0},
        {"tiles_-1": 0.5, "tiles_1": 1.0},
    ],
)
def test_barriers_are_given_from_one_tile_on_and_in_order(table):
    with pytest.raises(ConfigError, match=r"time\.barrier"):
        chip("loihi1", {"time.barrier": barrier("linear", **table)})


def test_numbers_of_tiles_are_whole():
    table = barrier("step", tiles_1=5.0)
    for key in (True, 1.0, "1"):
        with pytest.raises(ConfigError, match=r"time\.barrier\.tiles"):
            chip("loihi1", {"time.barrier": {**table, "tiles": {key: table["tiles"][1]}}})
    with pytest.raises(ConfigError, match=r"time\.barrier\.between"):
        chip("loihi1", {"time.barrier": barrier("spline", tiles_1=5.0)})


def test_between_numbers_of_tiles_a_barrier_grows_or_waits():
    table = {"tiles_1": 100.0, "tiles_3": 200.0, "tiles_11": 1000.0}
    linear, step = (
        chip("loihi1", {"time.barrier": barrier(kind, **table)}).time.barrier for kind in ("linear", "step")
    )
    tiles = [1, 2, 3, 4, 7, 10, 11, 12, 500]
    assert [linear.at("nominal", n) for n in tiles] == [100, 150, 200, 300, 600, 900, 1000, 1000, 1000]
    assert [step.at("nominal", n) for n in tiles] == [100, 100, 200, 200, 200, 200, 1000, 1000, 1000]
    davies = load_profile("loihi1").time.barrier
    assert davies.at("low", 17) == pytest.approx(113 + (465 - 113) * 16 / 31)
    assert davies.at("high", 17) == pytest.approx(600 + (1800 - 600) * 16 / 31)


# ---------------------------------------------------------------- intervals


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
    assert widened.low <= min(a, b, c) and widened.high >= max(a, b, c)
    assert over_corners({"nominal": 2.0, "low": 1.0, "high": 3.0}.__getitem__) == Interval(nominal=2, low=1, high=3)


def test_sums_are_taken_end_by_end():
    one, other = Interval(nominal=2, low=1, high=4), Interval(nominal=20, low=10, high=40)
    assert total_of(one, other) == Interval(nominal=22, low=11, high=44)
    assert total_of() == Interval(nominal=0, low=0, high=0)
    assert np.isclose(one.widened(load_profile("loihi2").model_error.latency).low, 1)  # already lower than 0.7 x 2
