"""The plan of a sweep."""

import pytest

from stars_deploy.errors import ConfigError
from stars_deploy.sweep.settings import MOST_TIMESTEPS, Setting, check_once, plan_settings


def test_settings_are_in_the_order_of_the_table():
    assert plan_settings(2, (4, 1)) == (
        Setting(model=0, bits=None, timesteps=4),
        Setting(model=0, bits=None, timesteps=1),
        Setting(model=1, bits=None, timesteps=4),
        Setting(model=1, bits=None, timesteps=1),
    )
    planned = plan_settings(2, (1, 2, 4), (8, 4))
    assert len(planned) == len(set(planned)) == 12
    assert [(one.bits, one.timesteps) for one in planned[:6]] == [(8, 1), (8, 2), (8, 4), (4, 1), (4, 2), (4, 4)]


@pytest.mark.parametrize(
    ("timesteps", "bits", "words"),
    [
        ((0, 1), None, ["--timesteps", "0"]),
        ((4, -1), None, ["--timesteps", "-1"]),
        ((2_000_000,), None, ["--timesteps", "2000000", str(MOST_TIMESTEPS)]),
        ((MOST_TIMESTEPS + 1,), None, ["--timesteps", str(MOST_TIMESTEPS + 1)]),
        ((), None, ["--timesteps", "none"]),
        ((2, 4, 2), None, ["--timesteps", "2 given twice"]),
        ((1,), (), ["--bits", "none"]),
        ((1,), (1, 8), ["--bits", "1", "2 to 8"]),
        ((1,), (9,), ["--bits", "9"]),
        ((1,), (8, 8), ["--bits", "8 given twice"]),
    ],
)
def test_impossible_settings_are_named(timesteps, bits, words):
    with pytest.raises(ConfigError, match="each once") as caught:
        plan_settings(1, timesteps, bits)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_a_sweep_needs_a_model():
    with pytest.raises(ConfigError, match="none given"):
        plan_settings(0, (1,))


def test_names_are_given_once():
    check_once("--hardware", ("loihi1", "loihi2"), "each once")
    with pytest.raises(ConfigError, match="--hardware: loihi2 given twice; allowed: each once"):
        check_once("--hardware", ("loihi2", "loihi1", "loihi2"), "each once")
    assert plan_settings(1, (MOST_TIMESTEPS,))[0].timesteps == MOST_TIMESTEPS
