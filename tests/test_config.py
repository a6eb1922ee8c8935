"""Settings: defaults, files, overrides, and what is refused."""

import pytest

from stars_deploy.config import (
    BuildConfig,
    DataConfig,
    ObjectiveSetting,
    SynthesisConfig,
    TeacherConfig,
    load_config,
    load_method,
    method_names,
    resolve_objectives,
    save_config,
)
from stars_deploy.errors import ArtifactError, ConfigError


def test_embedded_teacher_is_measured_on_digits_unless_told_otherwise(tmp_path):
    assert BuildConfig().data.name == "digits"
    assert load_config(None, {"data": {"limit": 5}}).data == DataConfig(name="digits", limit=5)
    assert load_config(None, {"teacher": {"spec": "vgg:8"}}).data.name is None
    (tmp_path / "c.yaml").write_text("data:\n  name: null\n")
    assert load_config(tmp_path / "c.yaml", {}).data.name is None


def test_saved_settings_read_back_equal(tmp_path):
    for config in (
        BuildConfig(),
        load_config(None, {"teacher": {"spec": "vgg:8", "input_shape": (1, 8, 8), "mean": (0.5,)}, "bits": 4}),
    ):
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml", {}) == config


def test_overrides_win_over_the_file_and_none_does_not(tmp_path):
    (tmp_path / "c.yaml").write_text("timesteps: 8\nbits: 6\nstudent:\n  decay: 0.5\n")
    config = load_config(tmp_path / "c.yaml", {"timesteps": 2, "bits": None, "student": {"spec": "vgg:8"}})
    assert (config.timesteps, config.bits, config.student.decay, config.student.spec) == (2, 6, 0.5, "vgg:8")


BASE = {"bn": 5.0, "onehot": 1.0}


def objectives(method, **over):
    settings = resolve_objectives(BASE, load_method(method), SynthesisConfig(objectives=over))
    return {name: setting.model_dump() for name, setting in settings.items()}


def test_every_method_that_ships_can_be_had_and_says_where_it_comes_from():
    assert {"bn", "rca", "tar", "stars"} <= set(method_names())
    for name in method_names():
        method = load_method(name)
        assert method.title
        assert ("STARS" in method.origin) == (name != "bn")
        assert objectives(name).keys() >= BASE.keys()


def test_methods_differ_by_rca_and_tar_only():
    bn, stars = objectives("bn"), objectives("stars")
    assert bn.keys() == BASE.keys()
    assert stars.keys() - bn.keys() == {"rca", "tar"}
    assert {name: stars[name] for name in bn} == bn
    assert {**objectives("rca"), **objectives("tar")} == stars


def test_settings_win_over_the_method_key_by_key():
    found = objectives("stars", tar={"thresholds": "gaussian", "begin": 0.5}, bn=0, own=2.0)
    assert found["tar"] == {"weight": 0.5, "begin": 0.5, "ramp": 0.0, "until": 1.0, "thresholds": "gaussian"}
    assert "bn" not in found
    assert found["own"]["weight"] == 2.0
    assert objectives("stars", tar=3.0)["tar"]["thresholds"] == "boundary"


def test_weights_follow_their_schedule():
    setting = ObjectiveSetting(weight=4.0, begin=0.2, ramp=0.4, until=0.9)
    assert [setting.at(progress) for progress in (0, 0.2, 0.4, 0.6, 0.9, 0.91)] == pytest.approx([0, 0, 2, 4, 4, 0])
    assert ObjectiveSetting(weight=4.0).at(0) == ObjectiveSetting(weight=4.0).at(1) == 4


def test_method_can_be_a_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("title: mine\norigin: me\nobjectives: {tar: {weight: 2, thresholds: student}}\n")
    assert objectives(str(file))["tar"]["thresholds"] == "student"
    file.write_text("title: mine\nweights: {}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml.*origin"):
        load_method(str(file))


@pytest.mark.parametrize(
    ("name", "words"), [("magic", "bn, rca, stars, tar, or a YAML file"), ("none.yaml", "none.yaml"), ("../x", "x")]
)
def test_unknown_methods_are_refused(name, words):
    with pytest.raises((ConfigError, ArtifactError), match=words):
        load_method(name)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), (" 1.5h ", 5400), (30, 30)])
def test_durations_are_understood(text, seconds):
    assert load_config(None, {"distill": {"budget": text}}).distill.budget == seconds


@pytest.mark.parametrize("text", ["soon", "10 minutes", "-3m", "0", "1d", ""])
def test_other_durations_are_refused(text):
    with pytest.raises(ConfigError, match=r"distill\.budget"):
        load_config(None, {"distill": {"budget": text}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timesteps: 0", "timesteps"),
        ("bits: 1", "bits"),
        ("seed: -1", "seed"),
        ("targets: []", "targets"),
        ("targetz: [lava]", "targetz"),
        ("distill: {learning_rate: .nan}", "distill.learning_rate"),
        ("student: {decay: 1.0}", "student.decay"),
        ("distill: {mixing: [blur]}", "distill.mixing"),
        ("- a list", "mapping"),
        ("a: [unclosed", "not YAML"),
        ("teacher: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_bad_settings_are_named(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "c.yaml", {})


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml", {})


def test_settings_cannot_change():
    with pytest.raises(Exception, match="frozen"):
        TeacherConfig().spec = "other"


@pytest.mark.parametrize("schedule", [{"begin": 0.6, "until": 0.4}, {"begin": 1.0}, {"until": 0.0}])
def test_an_objective_that_would_never_count_is_refused(schedule):
    with pytest.raises(ConfigError, match=r"synthesis\.objectives\.tar.*it would never count"):
        objectives("tar", tar={"weight": 0.5, **schedule})
