"""Settings: defaults, files, overrides, and what is refused."""

import pytest

from stars_deploy.config import METHODS, BuildConfig, DataConfig, TeacherConfig, load_config, save_config
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


def test_methods_differ_by_rca_and_tar_only():
    bn, stars = METHODS["bn"].model_dump(), METHODS["stars"].model_dump()
    assert {name for name in bn if bn[name] != stars[name]} == {"rca", "tar"}
    assert bn["rca"] == bn["tar"] == 0
    assert load_config(None, {"method": "bn"}).objectives() == METHODS["bn"]
    own = load_config(None, {"synthesis": {"objectives": {"tar": 3.0}}})
    assert own.objectives().tar == 3.0


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
