"""What the evidence machine refuses, because a table would lie or hours would be lost."""

from __future__ import annotations

import json
from functools import partial

import pytest
import stars
import torch
from evidence import running, worker
from evidence.arms import ShuffledTails, register_all
from evidence.checking import check_campaign
from evidence.pairing import share_of_way
from evidence.planning import plan_runs
from evidence.running import cpu_seconds, resolve_equal_time, run_campaign
from evidence.summary import markdown, summarize
from evidence_campaigns import CAMPAIGN, WITH_REFERENCES, place_in, request_of, small_campaign, write_campaign

from stars_deploy.config import load_section
from stars_deploy.errors import ArtifactError, ConfigError, StarsDeployError
from stars_deploy.synthesis import registry
from stars_deploy.teacher import DIGITS_WEIGHTS, load_teacher

EQUAL = {"equal_time": {"arm": "stars", "base": "backbone"}}


@pytest.fixture
def campaign(tmp_path):
    """Load the small campaign, changed as asked."""
    return partial(small_campaign, tmp_path)


@pytest.fixture
def place(tmp_path):
    return place_in(tmp_path)


@pytest.fixture(autouse=True)
def offered(monkeypatch):
    """Offer what only the evidence has, until the test ends."""
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    monkeypatch.setattr(registry, "_objectives", dict(registry._objectives))
    threads = torch.get_num_threads()
    register_all()
    yield
    torch.set_num_threads(threads)


def _do(place, campaign, run):
    worker.main(request_of(place, campaign, run))
    return json.loads(place.result(run.name).read_text())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seeds": [0, 0]}, "two runs called vgg_fast_backbone_seed0"),
        ({"arms": {"backbone": {}, "+rca": {}, "plus-rca": {}}}, "two runs called vgg_fast_plus-rca_seed0"),
        ({"arms": {"backbone": {}, "a/b": {}}}, "a/b"),
        ({"backbones": {}}, "no run"),
        ({"arms": {"backbone": {"students": []}}}, "arms.backbone.students"),
        ({"settings": {"distill": {"budget": "1m"}}}, "distill.budget 60 s"),
        ({"comparisons": [["stars", "nothing"]]}, "comparisons.*nothing"),
        ({"arms": {"backbone": {}, "equal": {"equal_time": {"arm": "equal", "base": "backbone"}}}}, "equal_time"),
        (
            {"arms": {**WITH_REFERENCES, "equal": {"equal_time": {"arm": "real", "base": "backbone"}}}},
            "arms.equal.equal_time.*vgg_fast_real",
        ),
        (
            {"students": {"vgg": {"student": {"spec": "vgg:4-8"}}, "inherit": {}},
             "arms": {"backbone": {}, "stars": {"students": ["vgg"]}, "equal": EQUAL}},
            "inherit_fast_stars",
        ),
        ({"students": {"inherit": {}}, "arms": {"backbone": {"kind": "ann"}}}, "ANN that inherits"),
    ],
)  # fmt: skip
def test_refused_when_the_file_is_read(campaign, changes, named):
    with pytest.raises(ConfigError, match=named):
        campaign(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": {"backbone": {"settings": {"method": "starz"}}}}, "vgg_fast_backbone_seed0.*starz.*stars"),
        ({"arms": {"backbone": {"settings": {"synthesis": {"objectives": {"rcaa": 1}}}}}}, "rcaa.*rca"),
        ({"backbones": {"magic": {}}}, "magic.*fast"),
        ({"students": {"huge": {}}}, "huge.*inherit"),
        ({"backbones": {"dfq": {"synthesis": {"options": {"inner_steps": 3}}}}}, "synthesis.options.*inner_steps"),
        ({"dataset": "fashion-mnist"}, "--root"),
        ({"dataset": "magic"}, "magic"),
        ({"validation_images": 5000}, "validation_images.*5000 of 1437"),
        (
            {"settings": {"synthesis": {"objectives": {"tar_placebo": {"weight": 1, "thresholds": "gaussian"}}}}},
            "tar_placebo.*gaussian.*boundary",
        ),
    ],
)  # fmt: skip
def test_refused_before_the_first_run(tmp_path, capsys, monkeypatch, changes, named):
    path = write_campaign(tmp_path, **changes)
    monkeypatch.setattr(running.subprocess, "Popen", pytest.fail)
    with pytest.raises(StarsDeployError, match=named):
        check_campaign(small_campaign(tmp_path, **changes), place_in(tmp_path))
    assert stars.main([str(path), "--teacher", str(DIGITS_WEIGHTS), "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_backbone_and_a_student_without_settings_are_those_of_the_name(campaign):
    run = plan_runs(campaign(backbones={"dfq": {}}, students={"vgg:4-8": {}}))[0]
    assert (run.config().synthesis.backbone, run.config().student.spec) == ("dfq", "vgg:4-8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"evaluate": "test"}, "evaluated_on validation, now test"),
        ({"validation_images": 301}, "samples 300, now 301"),
        ({"settings": {**CAMPAIGN["settings"], "timesteps": 3}}, "config.timesteps 2, now 3"),
        ({"arms": {"backbone": {"settings": {"method": "tar"}}}}, "config.method bn, now tar"),
    ],
)
def test_results_of_another_campaign_are_neither_used_nor_named_as_of_this(
    tmp_path, campaign, place, capsys, changes, named
):
    before = campaign(seeds=[0])
    _do(place, before, plan_runs(before)[0])
    after = campaign(**{"seeds": [0], **changes})
    with pytest.raises(ArtifactError, match=named):
        run_campaign(after, place, 1, pytest.fail)
    for options in (["--summary"], ["--dry-run"], ["--teacher", str(DIGITS_WEIGHTS)]):
        assert stars.main([str(tmp_path / "campaign.yaml"), "--out", str(place.folder), *options]) == 2
        assert named.split(",")[0] in capsys.readouterr().err
    assert len(place.results(before)) == 1


def test_results_of_another_teacher_are_refused(tmp_path, campaign, place):
    loaded = campaign(seeds=[0])
    _do(place, loaded, plan_runs(loaded)[0])
    other = tmp_path / "other.safetensors"
    other.write_bytes(DIGITS_WEIGHTS.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=r"teacher\.sha256"):
        running.Place(folder=place.folder, teacher=other, root=None).results(loaded)


def test_steps_of_equal_time_are_no_difference(campaign, place):
    loaded = campaign(arms={**CAMPAIGN["arms"], "equal": EQUAL}, seeds=[0])
    for run in plan_runs(loaded):
        _do(place, loaded, resolve_equal_time(run, place.results(loaded)))
    assert len(place.results(loaded)) == 3


def test_results_of_a_method_with_other_weights_are_refused(tmp_path, campaign, place):
    """The configuration names the method alone; what it weighs is in its own file, which may have changed."""
    method = tmp_path / "method.yaml"
    method.write_text("title: m\norigin: o\nobjectives: {tar: {weight: 0.5}}\n")
    loaded = campaign(arms={**CAMPAIGN["arms"], "backbone": {"settings": {"method": str(method)}}}, seeds=[0])
    _do(place, loaded, plan_runs(loaded)[0])
    assert len(place.results(loaded)) == 1
    method.write_text("title: m\norigin: o\nobjectives: {tar: {weight: 0.2}}\n")
    with pytest.raises(ArtifactError, match=r"objectives .*0\.5.*now .*0\.2"):
        place.results(loaded)


def _checkpoint(place, campaign, run, made_by):
    request = request_of(place, campaign, run)
    return worker.checkpoint_of(request, {**json.loads(request.read_text()), "sources": made_by})


def test_a_checkpoint_of_other_sources_or_images_is_removed(campaign, place):
    loaded = campaign(seeds=[0])
    run, other = plan_runs(loaded)[:2]
    own, beside = _checkpoint(place, loaded, run, "a"), _checkpoint(place, loaded, other, "a")
    for path in (own, beside):
        path.write_bytes(b"")
    assert _checkpoint(place, loaded, run, "a") == own
    assert own.exists()
    assert _checkpoint(place, loaded, run, "b") != own
    assert not own.exists()
    assert beside.exists()
    own.write_bytes(b"")
    assert _checkpoint(place, campaign(seeds=[0], validation_images=301), run, "a") != own
    assert not own.exists()


def test_sources_are_those_at_the_beginning(campaign, place, monkeypatch):
    loaded = campaign(seeds=[0])
    answers = iter(["before", "after"])
    monkeypatch.setattr(worker, "sources", lambda: next(answers))
    assert _do(place, loaded, plan_runs(loaded)[0])["sources"] == "before"


def test_a_checkpoint_of_other_settings_is_begun_anew(campaign, place, capsys):
    loaded = campaign(seeds=[0])
    run = plan_runs(loaded)[0]
    whole = _do(place, loaded, run)
    place.result(run.name).unlink()
    _checkpoint(place, loaded, run, worker.sources()).write_bytes(b"of another time")
    again = _do(place, loaded, run)
    assert "begun anew" in capsys.readouterr().err
    assert (again["accuracy"], again["seconds"]["resumed_at"]) == (whole["accuracy"], 0)


def test_time_of_a_resumed_run_counts_whole(campaign):
    resumed = {"steps": 100, "seconds": {"cpu": 5.0, "resumed_at": 75}}
    assert cpu_seconds(resumed) == 20.0
    assert cpu_seconds({"steps": 0, "seconds": {"cpu": 0.5, "resumed_at": 0}}) == 0.5
    runs = plan_runs(campaign(arms={**CAMPAIGN["arms"], "equal": EQUAL}, seeds=[0]))
    results = {runs[0].name: {"steps": 100, "seconds": {"cpu": 10.0, "resumed_at": 0}}, runs[1].name: resumed}
    assert resolve_equal_time(runs[2], results).config().distill.steps == 200


def test_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stars, "run_campaign", interrupt)
    path = write_campaign(tmp_path)
    assert stars.main([str(path), "--teacher", str(DIGITS_WEIGHTS), "--out", str(tmp_path / "out")]) == 130
    assert "same command" in capsys.readouterr().err


def _result(arm, seed, accuracy, **more):
    return {
        "arm": arm, "kind": arm if arm in ("real", "noise") else "distill", "student": "vgg", "seed": seed,
        "backbone": "" if arm in ("real", "noise") else "fast", "accuracy": accuracy, "steps": 8, "images": 40,
        "seconds": {"cpu": 60.0}, "mechanism": {}, "sources": "a", "teacher": {"sha256": "t"}, **more,
    }  # fmt: skip


def test_any_two_arms_can_be_compared(campaign):
    loaded = campaign(arms={**CAMPAIGN["arms"], "placebo": {}}, comparisons=[["stars", "placebo"]])
    results = [
        _result("stars", 0, 0.5),
        _result("stars", 1, 0.7),
        _result("placebo", 0, 0.4),
        _result("placebo", 1, 0.58),
    ]
    summary = summarize(loaded, results, 6)
    (row,) = summary["comparisons"]
    assert (row["arm"], row["against"], row["backbone"]) == ("stars", "placebo", "fast")
    assert row["paired"]["differences"] == pytest.approx((0.1, 0.12))
    assert "| stars against placebo | +10.00, +12.00 | +11.00 [" in markdown(summary)


def test_no_way_from_noise_to_real_is_no_share(campaign):
    summary = summarize(campaign(arms=WITH_REFERENCES), [_result(arm, 0, 0.1) for arm in WITH_REFERENCES], 8)
    assert [row["way"] for row in summary["rows"]] == [None] * 4
    assert share_of_way(0.2, 0.1, 0.1) != share_of_way(0.2, 0.1, 0.1)  # NaN


def test_results_of_several_sources_are_marked(campaign):
    results = [_result("stars", 0, 0.5), _result("backbone", 0, 0.4, sources="b")]
    page = markdown(summarize(campaign(), results, 4))
    assert "2 states of the source code" in page
    assert "2 teachers" not in page


@pytest.mark.parametrize("thresholds", ["gaussian", "student"])
def test_placebo_of_tails_is_of_the_boundary_alone(thresholds):
    options = load_section(ShuffledTails.Options, {"thresholds": thresholds})
    with pytest.raises(ConfigError, match=f"{thresholds}.*boundary"):
        ShuffledTails(load_teacher(), options)
