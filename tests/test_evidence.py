"""The evidence machine (benchmarks/stars.py): its statistics, its plan and its summary."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import scipy.stats
import stars
from evidence.pairing import pair, share_of_way, spread, t_interval
from evidence.planning import load_campaign, plan_runs
from evidence.running import resolve_equal_time
from evidence.summary import NOTE, markdown, summarize
from evidence_campaigns import BENCHMARKS, WITH_REFERENCES, small_campaign, write_campaign

from stars_deploy.errors import StarsDeployError
from stars_deploy.teacher import DIGITS_WEIGHTS


@pytest.fixture
def write(tmp_path):
    """Write the small campaign, changed as asked, and return its path."""
    return partial(write_campaign, tmp_path)


@pytest.fixture
def campaign(tmp_path):
    """Load the small campaign, changed as asked."""
    return partial(small_campaign, tmp_path)


# Statistics


def test_interval_is_that_of_the_t_distribution():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    values = [0.3, -1.2, 0.8, 2.5, 0.1]
    known = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize("values", [[], [1.0]])
def test_there_is_no_interval_of_less_than_two(values):
    assert all(math.isnan(end) for end in t_interval(values))
    assert math.isnan(spread(values))


def test_spread_is_that_of_a_sample():
    assert spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5)


def test_pairs_are_of_the_seeds_that_both_have():
    paired = pair({3: 0.9, 1: 0.5, 7: 0.1}, {1: 0.4, 3: 0.5, 8: 0.9})
    assert paired.seeds == (1, 3)
    assert paired.differences == pytest.approx((0.1, 0.4))
    assert paired.mean == pytest.approx(0.25)
    assert (paired.low, paired.high) == pytest.approx(t_interval([0.1, 0.4]))
    assert pair({1: 0.5}, {2: 0.5}) is None


@pytest.mark.parametrize(
    ("arm", "resolved"),
    [
        ({0: 1.1, 1: 1.2, 2: 1.15}, True),
        ({0: 0.9, 1: 0.8, 2: 0.85}, True),
        ({0: 1.4, 1: 0.9, 2: 1.1}, False),
        ({0: 1.4}, False),
    ],
)
def test_a_difference_is_resolved_where_its_interval_leaves_out_zero(arm, resolved):
    assert pair(arm, dict.fromkeys(range(3), 1.0)).resolved is resolved


def test_share_of_the_way_from_noise_to_real():
    assert share_of_way(0.75, 0.5, 1.0) == pytest.approx(0.5)
    assert share_of_way(0.4, 0.5, 1.0) == pytest.approx(-0.2)


# Plan


def test_every_arm_runs_on_every_backbone_and_student_and_references_on_none(campaign):
    loaded = campaign(
        backbones={"fast": {}, "dfq": {"synthesis": {"backbone": "dfq"}}},
        students={"vgg": {"student": {"spec": "vgg:4-8"}}, "inherit": {"student": {"spec": "inherit"}}},
        arms={
            "backbone": {},
            "tar": {"students": ["vgg"], "backbones": ["dfq"]},
            "real": {"kind": "real"},
            "none": {"kind": "none", "students": ["inherit"]},
        },
    )
    places = [(run.student, run.backbone, run.arm) for run in plan_runs(loaded) if run.seed == 1]
    assert sorted(places) == sorted([
        ("vgg", "fast", "backbone"), ("vgg", "dfq", "backbone"), ("vgg", "dfq", "tar"), ("vgg", "", "real"),
        ("inherit", "fast", "backbone"), ("inherit", "dfq", "backbone"), ("inherit", "", "real"),
        ("inherit", "", "none"),
    ])  # fmt: skip
    assert len({run.name for run in plan_runs(loaded)}) == 2 * len(places)


def test_pairs_are_complete_early_and_what_waits_for_others_comes_last(campaign):
    equal = {"equal_time": {"arm": "stars", "base": "backbone"}}
    runs = plan_runs(campaign(arms={"backbone": {}, "longer": equal, "stars": {}}))
    assert [(run.seed, run.arm) for run in runs] == [
        (0, "backbone"), (0, "stars"), (1, "backbone"), (1, "stars"), (0, "longer"), (1, "longer"),
    ]  # fmt: skip
    assert runs[-1].sibling("stars") == runs[3].name


def test_settings_of_an_arm_win_over_student_backbone_and_campaign(campaign):
    def layer(*keys):
        names = {"a": "decay", "b": "balance", "c": "surrogate_width"}
        return {"student": {names[key]: value for key, value in keys}}

    loaded = campaign(
        settings=layer(("a", 0.1), ("b", 1.0), ("c", 1.0)),
        backbones={"fast": layer(("a", 0.2), ("b", 2.0), ("c", 2.0))},
        students={"vgg": {"student": {"spec": "vgg:4-8", "decay": 0.3, "balance": 3.0}}},
        arms={"backbone": {"settings": layer(("a", 0.4))}},
    )
    config = plan_runs(loaded)[1].config()
    assert (config.student.decay, config.student.balance, config.student.surrogate_width) == (0.4, 3.0, 2.0)
    assert (config.student.spec, config.seed, config.threads) == ("vgg:4-8", 1, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"armz": {}}, "armz"),
        ({"seeds": []}, "seeds"),
        ({"evaluate": "train"}, "evaluate"),
        ({"baseline": "nothing"}, "baseline.*nothing.*backbone"),
        ({"arms": {"backbone": {"kind": "magic"}}}, "arms.backbone.kind.*magic"),
        ({"arms": {"backbone": {"students": ["resnet"]}}}, "arms.backbone.students.*resnet.*vgg"),
        ({"arms": {"backbone": {"backbones": ["slow"]}}}, "arms.backbone.backbones.*slow.*fast"),
        ({"arms": {"backbone": {"equal_time": {"arm": "b", "base": "backbone"}}}}, "equal_time.*b"),
        ({"arms": {"backbone": {"settings": {"distill": {"stepz": 3}}}}}, "stepz"),
        ({"settings": {"timesteps": 0}}, "timesteps"),
    ],
)
def test_a_wrong_campaign_is_refused_before_anything_runs(write, capsys, changes, named):
    path = write(**changes)
    with pytest.raises(StarsDeployError, match=named):
        load_campaign(path)
    assert stars.main([str(path), "--teacher", str(DIGITS_WEIGHTS), "--out", str(path.parent / "out")]) == 2
    assert capsys.readouterr().err
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize("content", [None, "a: [", "- a list"])
def test_a_file_that_is_no_campaign_is_refused(tmp_path, capsys, content):
    path = tmp_path / "campaign.yaml"
    if content is not None:
        path.write_text(content)
    assert stars.main([str(path), "--dry-run"]) == 2
    assert str(path) in capsys.readouterr().err


def test_committed_campaigns_are_understood():
    files = sorted((BENCHMARKS / "campaigns").glob("*.yaml"))
    assert {"digits-smoke", "fashion-mnist-quality"} <= {file.stem for file in files}
    for file in files:
        loaded = load_campaign(file)
        assert len(plan_runs(loaded)) >= len(loaded.seeds) * len(loaded.arms) / 2, file


def test_equal_time_gives_the_steps_that_the_other_arm_had_time_for(campaign):
    equal = {"equal_time": {"arm": "stars", "base": "backbone"}, "settings": {"distill": {"batch": 17}}}
    runs = plan_runs(campaign(arms={"backbone": {}, "stars": {}, "longer": equal}, seeds=[5]))
    results = {
        run.name: {"steps": steps, "seconds": {"cpu": cpu, "wall": 1.0}}
        for run, (steps, cpu) in zip(runs, [(100, 10.0), (100, 15.5)], strict=False)
    }
    resolved = resolve_equal_time(runs[2], results)
    assert resolved.name == runs[2].name
    assert resolved.config().distill.steps == 155
    assert resolved.config().distill.batch == 17
    assert resolve_equal_time(runs[0], {}) == runs[0]


# Wrong input


@pytest.mark.parametrize(
    "options", [[], ["--teacher", "x", "--workers", "0"], ["--summary", "--workers", "0"], ["--magic"]]
)
def test_wrong_options_end_with_code_2(write, options):
    with pytest.raises(SystemExit) as ended:
        stars.main([str(write()), *options])
    assert ended.value.code == 2


def test_a_missing_teacher_ends_with_code_2(write, tmp_path, capsys):
    assert stars.main([str(write()), "--teacher", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "o")]) == 2
    assert "no.safetensors" in capsys.readouterr().err


def test_nothing_to_summarise_is_said(write, tmp_path, capsys):
    assert stars.main([str(write()), "--out", str(tmp_path / "out"), "--summary"]) == 0
    assert "no run is done" in capsys.readouterr().err


# Summary


def _result(arm, seed, accuracy, kind="distill", backbone="fast", **more):
    return {
        "arm": arm, "kind": kind, "backbone": backbone, "student": "vgg", "seed": seed, "accuracy": accuracy,
        "evaluated_on": "validation", "seconds": {"cpu": 60.0 + 60 * seed, "wall": 1.0}, "steps": 8, "images": 100,
        "mechanism": {}, "sources": "digest", "teacher": {"sha256": "t"}, **more,
    }  # fmt: skip


RESULTS = [
    _result("stars", 1, 0.60), _result("stars", 0, 0.50), _result("stars", 2, 0.60),
    _result("backbone", 0, 0.40), _result("backbone", 1, 0.46), _result("backbone", 9, 0.10),
    _result("real", 0, 0.90, "real", ""), _result("real", 1, 0.80, "real", ""), _result("noise", 0, 0.25, "noise", ""),
]  # fmt: skip


def test_rows_have_every_seed_and_pair_only_equal_ones(campaign):
    summary = summarize(campaign(arms=WITH_REFERENCES), RESULTS, 12)
    assert [row["arm"] for row in summary["rows"]] == ["real", "noise", "backbone", "stars"]
    row = summary["rows"][-1]
    assert row["accuracy"] == {0: 0.50, 1: 0.60, 2: 0.60}
    assert row["mean"] == pytest.approx(1.7 / 3)
    assert row["sd"] == pytest.approx(spread([0.5, 0.6, 0.6]))
    assert row["paired"]["seeds"] == (0, 1)
    assert row["paired"]["differences"] == pytest.approx((0.10, 0.14))
    assert row["paired"]["mean"] == pytest.approx(0.12)
    assert (row["paired"]["low"], row["paired"]["high"]) == pytest.approx(t_interval([0.10, 0.14]))
    assert row["paired"]["resolved"] is False  # t(1) = 12.7: two seeds resolve little
    assert row["way"] == pytest.approx((1.7 / 3 - 0.25) / (0.85 - 0.25))
    assert row["cpu_minutes"] == pytest.approx(2.0)
    assert [one["paired"] for one in summary["rows"][:3]] == [None, None, None]
    assert summary["runs"] == {"done": 9, "planned": 12}


def test_page_says_what_the_numbers_are(campaign):
    page = markdown(summarize(campaign(arms=WITH_REFERENCES), RESULTS, 12))
    assert NOTE in page
    assert "9 of 12" in page
    assert "validation" in page
    line = next(line for line in page.splitlines() if "| stars |" in line)
    assert "50.00, 60.00, 60.00" in line
    low, high = (100 * end for end in t_interval([0.10, 0.14]))
    assert f"+12.00 [{low:+.2f}, {high:+.2f}]" in line
    assert f"{(1.7 / 3 - 0.25) / 0.6:.1%}" in line


def test_one_seed_has_a_difference_and_no_interval(campaign):
    summary = summarize(campaign(), [_result("stars", 0, 0.5), _result("backbone", 0, 0.4)], 4)
    json.dumps(summary, allow_nan=False)
    line = next(line for line in markdown(summary).splitlines() if "| stars |" in line)
    assert "| - | +10.00 | - |" in line
