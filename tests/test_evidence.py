"""The evidence machine (benchmarks/stars.py): its statistics, its plan, what it does again and what not, its arms."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from pathlib import Path

import pytest
import scipy.stats
import torch
import yaml
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import stars  # noqa: E402
from evidence import mechanism, running, worker  # noqa: E402
from evidence.arms import PermutedRelations, RealImages, ShuffledTails, as_ann, register_all  # noqa: E402
from evidence.pairing import pair, share_of_way, spread, t_interval  # noqa: E402
from evidence.planning import load_campaign, plan_runs  # noqa: E402
from evidence.running import Place, resolve_equal_time, run_campaign  # noqa: E402
from evidence.summary import NOTE, markdown, summarize  # noqa: E402

from stars_deploy.config import load_config, load_section  # noqa: E402
from stars_deploy.data import load_dataset  # noqa: E402
from stars_deploy.distill import Distiller  # noqa: E402
from stars_deploy.errors import StarsDeployError  # noqa: E402
from stars_deploy.norms import norm_statistics  # noqa: E402
from stars_deploy.pipeline.distilling import make_distiller  # noqa: E402
from stars_deploy.student import NeuronModel, build_student  # noqa: E402
from stars_deploy.synthesis import registry  # noqa: E402
from stars_deploy.synthesis.objective import Observation  # noqa: E402
from stars_deploy.synthesis.objectives import RelationalConsistency, TailMatching  # noqa: E402
from stars_deploy.teacher import DIGITS_WEIGHTS, load_teacher  # noqa: E402

SMALL = {
    "timesteps": 2,
    "distill": {"steps": 8, "batch": 16, "steps_per_round": 4, "checkpoint_every": 3},
    "synthesis": {"batch": 20},
}
CAMPAIGN = {
    "title": "A test",
    "dataset": "digits",
    "settings": SMALL,
    "backbones": {
        "fast": {
            "synthesis": {
                "backbone": "fast", "options": {"warmup_steps": 2, "inner_steps": 1, "width": 4, "latent": 8}
            }
        }
    },
    "students": {"vgg": {"student": {"spec": "vgg:4-8"}}},
    "arms": {
        "backbone": {"settings": {"method": "bn"}},
        "stars": {"settings": {"method": "stars"}},
    },
    "seeds": [0, 1],
    "baseline": "backbone",
    "evaluate": "validation",
    "validation_images": 300,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write the campaign of this module, changed as asked, and return its path."""

    def write(**changes):
        path = tmp_path / "campaign.yaml"
        path.write_text(yaml.safe_dump({**CAMPAIGN, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture
def campaign(write):
    """Load the campaign of this module, changed as asked."""
    return lambda **changes: load_campaign(write(**changes))


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "out"
    (folder / "work").mkdir(parents=True)
    return Place(folder=folder, teacher=DIGITS_WEIGHTS, root=None, sources="digest")


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture
def offered(monkeypatch):
    """Offer what only the evidence has, until the test ends."""
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    monkeypatch.setattr(registry, "_objectives", dict(registry._objectives))
    threads = torch.get_num_threads()
    register_all()
    yield
    torch.set_num_threads(threads)


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
        names = [run.name for run in plan_runs(loaded)]
        assert len(names) == len(set(names)) >= len(loaded.seeds) * len(loaded.arms) / 2, file


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


# Processes, with a worker that only pretends

PRETENDER = """
import json, os, sys, time
from pathlib import Path

request = Path(sys.argv[1])
asked = json.loads(request.read_text())
run = asked["run"]
living = request.parent / "living"
living.mkdir(exist_ok=True)
mark = living / request.stem
mark.write_text("")
with open(request.parent / "starts.jsonl", "a") as log:
    entry = {"name": request.stem, "beside": len(list(living.iterdir())), "threads": os.environ["OMP_NUM_THREADS"],
             "steps": run["settings"].get("distill", {}).get("steps")}
    log.write(json.dumps(entry) + "\\n")
for _ in range(600 if os.environ.get("MEET") else 0):
    if len(list(living.iterdir())) > 1 or (request.parent / "met").exists():
        (request.parent / "met").write_text("")
        break
    time.sleep(0.05)
if run["arm"] == os.environ.get("FAILS"):
    mark.unlink()
    sys.exit("no luck")
if run["arm"] == os.environ.get("HANGS"):
    time.sleep(600)
time.sleep(0.05)
mark.unlink()
Path(asked["result"]).write_text(json.dumps({
    **{name: run[name] for name in ("arm", "kind", "backbone", "student", "seed")},
    "accuracy": 0.5 + 0.01 * run["seed"] + 0.02 * (run["arm"] == "stars"), "samples": 300,
    "evaluated_on": asked["evaluate"], "steps": 8, "images": 40, "sources": asked["sources"],
    "seconds": {"cpu": 3.0 if run["arm"] == "stars" else 2.0, "wall": 1.0},
    "mechanism": {"tail_error": {"boundary": [0.1, 0.2], "kappa_1": [0.1, 0.2], "kappa_2": [0.1, 0.2]}},
}))
"""


@pytest.fixture
def pretending(tmp_path, monkeypatch):
    """Replace the worker by one that needs no torch; return what was started, in order."""
    folder = tmp_path / "scripts"
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "__init__.py").write_text("")
    (folder / "evidence" / "worker.py").write_text(textwrap.dedent(PRETENDER))
    monkeypatch.setattr(running, "SCRIPTS", folder)

    def started():
        log = tmp_path / "out" / "work" / "starts.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return started


def test_two_processes_of_one_thread_run_at_a_time(campaign, place, pretending, monkeypatch):
    monkeypatch.setenv("MEET", "1")
    assert run_campaign(campaign(), place, 2, lambda _: None) == []
    assert (place.folder / "work" / "met").exists()  # each waits until there are two
    assert len(pretending()) == 4
    assert max(entry["beside"] for entry in pretending()) == 2
    assert {entry["threads"] for entry in pretending()} == {"1"}


def test_what_is_done_is_not_done_again(campaign, place, pretending):
    loaded = campaign()
    run_campaign(loaded, place, 2, lambda _: None)
    assert len(pretending()) == 4
    run_campaign(loaded, place, 2, lambda _: None)
    assert len(pretending()) == 4
    lost = plan_runs(loaded)[2].name
    place.result(lost).unlink()
    assert run_campaign(loaded, place, 2, lambda _: None) == []
    assert [entry["name"] for entry in pretending()[4:]] == [lost]
    assert len(place.results(loaded)) == 4


def test_equal_time_waits_for_the_arms_that_it_is_measured_by(campaign, place, pretending):
    arms = {**CAMPAIGN["arms"], "longer": {"equal_time": {"arm": "stars", "base": "backbone"}}}
    assert run_campaign(campaign(arms=arms, seeds=[0]), place, 2, lambda _: None) == []
    assert pretending()[-1]["name"] == "vgg_fast_longer_seed0"
    assert [entry["steps"] for entry in pretending()] == [8, 8, 12]


def test_a_failure_stops_neither_the_others_nor_a_second_try(campaign, place, pretending, monkeypatch):
    arms = {**CAMPAIGN["arms"], "longer": {"equal_time": {"arm": "stars", "base": "backbone"}}}
    loaded = campaign(arms=arms, seeds=[0])
    monkeypatch.setenv("FAILS", "stars")
    said = []
    assert run_campaign(loaded, place, 1, said.append) == ["vgg_fast_stars_seed0", "vgg_fast_longer_seed0"]
    assert list(place.results(loaded)) == ["vgg_fast_backbone_seed0"]
    log = place.folder / "work" / "vgg_fast_stars_seed0.log"
    assert "no luck" in log.read_text()
    assert any("FAILED" in text and str(log) in text for text in said)
    monkeypatch.delenv("FAILS")
    assert run_campaign(loaded, place, 1, said.append) == []
    assert len(place.results(loaded)) == 3


def test_an_interrupt_ends_the_processes(campaign, place, pretending, monkeypatch):
    monkeypatch.setenv("HANGS", "stars")
    processes = []
    begin = running.subprocess.Popen

    def remembered(*arguments, **options):
        processes.append(begin(*arguments, **options))
        return processes[-1]

    def interrupt(text):
        if "%" in text:  # the other one is done
            raise KeyboardInterrupt

    monkeypatch.setattr(running.subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt):
        run_campaign(campaign(seeds=[0]), place, 2, interrupt)
    assert len(processes) == 2
    assert all(process.wait(60) is not None for process in processes)
    assert not place.result("vgg_fast_stars_seed0").exists()


def test_command_runs_what_is_missing_and_summarises(write, tmp_path, pretending, capsys, monkeypatch):
    command = [str(write()), "--teacher", str(DIGITS_WEIGHTS), "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setenv("FAILS", "stars")
    assert stars.main(command) == 1
    monkeypatch.delenv("FAILS")
    assert json.loads(capsys.readouterr().out)["runs"] == {"done": 2, "planned": 4}
    assert stars.main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] == {"done": 4, "planned": 4}
    assert printed["note"] == NOTE
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == printed
    assert NOTE in (tmp_path / "out" / "summary.md").read_text()
    for name in ("accuracy", "differences", "tails"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.width > 400
    started = len(pretending())
    assert stars.main([str(write()), "--out", str(tmp_path / "out"), "--summary"]) == 0
    assert "+2.00 [+2.00, +2.00]" in capsys.readouterr().out
    assert len(pretending()) == started


def test_dry_run_lists_and_starts_nothing(write, tmp_path, pretending, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vgg_fast_stars_seed0.json").write_text("{}")
    assert stars.main([str(write()), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    states = dict(reversed(line.split()) for line in capsys.readouterr().out.splitlines())
    assert states.pop("vgg_fast_stars_seed0") == "done"
    assert len(states) == 3
    assert set(states.values()) == {"waiting"}
    assert pretending() == []


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
        "evaluated_on": "validation", "seconds": {"cpu": 60.0 + 60 * seed, "wall": 1.0}, "images": 100, "mechanism": {},
        "sources": "digest", **more,
    }  # fmt: skip


REFERENCES = {"real": {"kind": "real"}, "noise": {"kind": "noise"}, **CAMPAIGN["arms"]}
RESULTS = [
    _result("stars", 1, 0.60), _result("stars", 0, 0.50), _result("stars", 2, 0.60),
    _result("backbone", 0, 0.40), _result("backbone", 1, 0.46), _result("backbone", 9, 0.10),
    _result("real", 0, 0.90, "real", ""), _result("real", 1, 0.80, "real", ""), _result("noise", 0, 0.25, "noise", ""),
]  # fmt: skip


def test_rows_have_every_seed_and_pair_only_equal_ones(campaign):
    summary = summarize(campaign(arms=REFERENCES), RESULTS, 12)
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
    page = markdown(summarize(campaign(arms=REFERENCES), RESULTS, 12))
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


# Arms


def _request(place, campaign, run):
    request = place.folder / "work" / f"{run.name}.json"
    asked = {
        "run": run.model_dump(mode="json"), "teacher": str(place.teacher), "dataset": campaign.dataset, "root": None,
        "evaluate": campaign.evaluate, "validation_images": campaign.validation_images,
        "result": str(place.result(run.name)), "sources": place.sources,
    }  # fmt: skip
    request.write_text(json.dumps(asked))
    return request


def _done(place, campaign, arm, seed=0):
    """Do the run of an arm in this process, and return its result."""
    run = next(run for run in plan_runs(campaign) if (run.arm, run.seed) == (arm, seed))
    worker.main(_request(place, campaign, run))
    return json.loads(place.result(run.name).read_text())


ARMS = {
    **REFERENCES,
    "placebo": {"settings": {"method": "bn", "synthesis": {"objectives": {"rca_placebo": 1.0, "tar_placebo": 0.5}}}},
    "none": {"kind": "none"},
    "ann": {"kind": "ann", "settings": {"method": "bn"}},
}


@pytest.mark.parametrize("arm", ARMS)
def test_each_kind_of_arm_leaves_all_that_is_known(campaign, place, offered, arm):
    found = _done(place, campaign(arms=ARMS), arm)
    assert 0 <= found["accuracy"] <= 1
    assert (found["samples"], found["evaluated_on"], found["seed"]) == (300, "validation", 0)
    assert found["steps"] == (0 if arm == "none" else 8)
    assert found["images"] == (0 if arm == "none" else 40)
    assert found["teacher"]["sha256"] == load_teacher().weights["sha256"]
    assert found["sources"] == "digest"
    assert found["config"]["student"]["spec"] == "vgg:4-8"
    assert found["config"]["timesteps"] == (1 if arm == "ann" else 2)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"wall", "cpu", "synthesis"} <= found["seconds"].keys()
    assert "reconstructed from the abstract" in found["note"]
    mechanism = found["mechanism"]
    assert {len(mechanism["real"][name]) for name in ("rates", "dead", "saturated")} == {2}
    synthesised = arm not in ("real", "none")
    assert ("tail_error" in mechanism) is ("synthetic" in mechanism) is synthesised
    if synthesised:
        assert {len(errors) for errors in mechanism["tail_error"].values()} == {3}  # layers of the teacher
        assert mechanism["tail_error"].keys() == {"kappa_1", "kappa_2", "boundary"}
    weighed = {"stars": {"rca", "tar"}, "placebo": {"rca_placebo", "tar_placebo"}}.get(arm, set())
    assert weighed <= mechanism["gradient_ratios"].keys()
    assert not list((place.folder / "work").glob("*.safetensors"))


@pytest.mark.parametrize("evaluate", ["test", "validation"])
def test_images_are_read_once_after_the_last_step(campaign, place, offered, monkeypatch, evaluate):
    events = []
    advance, load, judge = Distiller.advance, worker.load_dataset, worker.accuracy

    def advanced(distiller):
        advance(distiller)
        events.append("step")

    def loaded(name, root=None, *, train=False):
        events.extend([] if train else ["test"])
        return load(name, root, train=train)

    def judged(student, held, *more):
        assert not student.training
        events.append(("accuracy", len(held.labels)))
        return judge(student, held, *more)

    monkeypatch.setattr(Distiller, "advance", advanced)
    monkeypatch.setattr(worker, "load_dataset", loaded)
    monkeypatch.setattr(worker, "accuracy", judged)
    found = _done(place, campaign(evaluate=evaluate), "stars")
    expected = ["test", ("accuracy", 360)] if evaluate == "test" else [("accuracy", 300)]
    assert events == ["step"] * 8 + expected
    assert found["evaluated_on"] == evaluate


def test_real_images_are_never_those_of_the_validation(campaign, place, offered, monkeypatch):
    dealt, judged = [], []
    deal, judge = RealImages.synthesize, worker.accuracy
    monkeypatch.setattr(
        RealImages, "synthesize", lambda source, *seen: (dealt.append(source.images), deal(source, *seen))[1]
    )
    monkeypatch.setattr(worker, "accuracy", lambda student, held: (judged.append(held.images), judge(student, held))[1])
    _done(place, campaign(arms=ARMS), "real")
    training = load_dataset("digits", train=True).images
    parts = [*dealt[0].numpy(), *judged[0]]
    assert (len(dealt[0]), len(judged[0])) == (len(training) - 300, 300)
    assert sorted(image.tobytes() for image in parts) == sorted(image.tobytes() for image in training)


def _state(campaign, teacher, arm, seed):
    run = next(run for run in plan_runs(campaign) if (run.arm, run.seed) == (arm, seed))
    distiller = worker.prepare(run, worker.settled(run), teacher)
    return distiller, {name: value.clone() for name, value in distiller.student.state_dict().items()}


def test_the_same_seed_gives_every_arm_the_same_start(campaign, teacher, offered):
    loaded = campaign(arms=ARMS)
    first, weights = _state(loaded, teacher, "backbone", 0)
    for arm in ("stars", "placebo", "ann", "real", "noise", "none"):
        other, same = _state(loaded, teacher, arm, 0)
        assert same.keys() == weights.keys()
        assert all(torch.equal(same[name], weights[name]) for name in weights), arm
        assert torch.equal(other.draws.get_state(), first.draws.get_state())
        if arm in ("stars", "placebo", "ann"):
            assert torch.equal(other.synthesis_draws.get_state(), first.synthesis_draws.get_state())
            made = zip(other.source.parameters(), first.source.parameters(), strict=True)
            assert all(torch.equal(one, another) for one, another in made), arm
    _, others = _state(loaded, teacher, "backbone", 1)
    assert not torch.equal(others["layers.0.weight"], weights["layers.0.weight"])


def test_an_interrupted_run_goes_on_and_ends_alike(campaign, place, offered, monkeypatch):
    loaded = campaign()
    whole = _done(place, loaded, "stars")
    place.result("vgg_fast_stars_seed0").unlink()
    steps = []
    advance = Distiller.advance

    def interrupted(distiller):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(distiller.step)
        advance(distiller)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Distiller, "advance", interrupted)
        _done(place, loaded, "stars")
    assert not place.result("vgg_fast_stars_seed0").exists()
    monkeypatch.setattr(
        Distiller, "advance", lambda distiller: (steps.append(distiller.step), advance(distiller)) and None
    )
    again = _done(place, loaded, "stars")
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]  # from the checkpoint of step 3
    for result in (whole, again):
        result.pop("seconds")
    assert again == whole


def test_ann_student_of_inherited_layers_answers_like_the_teacher(teacher):
    student, _ = build_student(teacher, "inherit", 2, NeuronModel())
    images = torch.from_numpy(load_dataset("digits").images[:200])
    ann = as_ann(student).eval()
    with torch.no_grad():
        output = ann(images, potentials=True)
        assert torch.allclose(output.mean_logits(), teacher.logits(images), atol=1e-3)
    assert len(output.logits) == 1
    assert [len(spikes) for spikes in output.spikes] == [1, 1, 1]
    assert all(
        torch.equal(spikes, current.relu()) for spikes, current in zip(output.spikes, output.potentials, strict=True)
    )


def test_placebo_of_relations_is_that_of_other_samples(teacher):
    options = load_section(RelationalConsistency.Options, {})
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert float(RelationalConsistency(teacher, options).compare(features, features)) == pytest.approx(0, abs=1e-9)
    placebo = PermutedRelations(teacher, options)
    assert float(placebo.compare(features, features)) > 0.1
    # Relations alone are moved: the loss has the size that unrelated samples have.
    apart = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    real = float(RelationalConsistency(teacher, options).compare(features, apart))
    assert float(placebo.compare(features, features)) == pytest.approx(real, rel=0.3)


def test_placebo_of_tails_wants_the_shares_of_other_channels(teacher):
    options = load_section(TailMatching.Options, {"thresholds": "boundary"})
    draws = torch.Generator().manual_seed(0)
    inputs = [
        (known.mean + known.deviation() * torch.randn(20000, len(known.mean), generator=draws))
        for known in norm_statistics(teacher.module, teacher.norms)
    ]
    nothing = torch.zeros(0)
    seen = Observation(
        images=nothing, views=nothing, labels=nothing, targets=nothing, logits=nothing, inputs=inputs,
        features=nothing, part=slice(0, 4),
    )  # fmt: skip
    assert float(TailMatching(teacher, options)(seen)) < 1e-3  # Gaussian inputs have the tails that it wants
    assert float(ShuffledTails(teacher, options)(seen)) > 0.05


# Mechanism


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_dataset("digits", train=True).images)


def _inherited(teacher):
    return build_student(teacher, "inherit", 2, NeuronModel())[0].eval()


def test_equal_images_have_no_tail_error_and_others_have(teacher, digits):
    student = _inherited(teacher)
    equal = mechanism.diagnose(teacher, student, digits[:100], digits[:100])
    assert all(error == 0 for errors in equal["tail_error"].values() for error in errors)
    assert equal["synthetic"] == equal["real"]
    other = mechanism.diagnose(teacher, student, digits[:100], torch.rand_like(digits[:100]))
    assert all(error > 0.01 for errors in other["tail_error"].values() for error in errors)
    assert "tail_error" not in mechanism.diagnose(teacher, student, digits[:100], None)


def test_tail_error_is_the_difference_of_soft_shares(teacher, digits):
    noise = torch.rand(100, *digits.shape[1:], generator=torch.Generator().manual_seed(0))
    found = mechanism.diagnose(teacher, _inherited(teacher), digits[:100], noise)["tail_error"]
    for layer, name in enumerate(teacher.norms):
        norm = dict(teacher.module.named_modules())[name]
        entered = []
        hook = norm.register_forward_hook(lambda _, given, out, kept=entered: kept.append(given[0]))
        with torch.no_grad():
            teacher.logits(digits[:100])
            teacher.logits(noise)
        hook.remove()
        mean, deviation = (one.view(1, -1, 1, 1) for one in (norm.running_mean, (norm.running_var + norm.eps).sqrt()))
        ratio = (norm.bias / norm.weight).view(1, -1, 1, 1)
        for kind, kappa in (("kappa_1", 1.0), ("kappa_2", 2.0), ("boundary", (-ratio).clamp(-2.5, 2.5))):
            shares = [torch.sigmoid(((z - mean) / deviation - kappa) / 0.25).mean((0, 2, 3)) for z in entered]
            assert found[kind][layer] == pytest.approx(float((shares[0] - shares[1]).abs().mean()), rel=1e-3), kind


def test_a_student_that_computes_the_same_agrees_and_relates_alike(teacher, digits):
    seen = mechanism.diagnose(teacher, as_ann(_inherited(teacher)).eval(), digits[:300], None)["real"]
    assert seen["agreement"] == 1
    assert seen["gram_correlation"] == pytest.approx(1, abs=1e-3)
    apart, _ = build_student(teacher, "vgg:4-8", 2, NeuronModel())
    assert mechanism.diagnose(teacher, apart.eval(), digits[:300], None)["real"]["gram_correlation"] < 0.9


def test_dead_and_saturated_channels_are_counted(teacher, digits):
    student = _inherited(teacher)
    before = mechanism.diagnose(teacher, student, digits[:100], None)["real"]
    norm = student.norms()[0]
    with torch.no_grad():
        norm.bias[:4] = -100.0
        norm.bias[4:6] = 100.0
    seen = mechanism.diagnose(teacher, student, digits[:100], None)["real"]
    channels = len(norm.bias)
    assert before["dead"][0] == before["saturated"][0] == 0
    assert seen["dead"][0] == pytest.approx(4 / channels)
    assert seen["saturated"][0] == pytest.approx(2 / channels)
    rates = student(digits[:100]).rates()[0].transpose(0, 1).flatten(1).mean(1)
    assert seen["rates"][0] == pytest.approx(float(rates.mean()), rel=1e-4)


def test_diversity_is_within_classes(teacher, digits):
    student = _inherited(teacher)
    answers = teacher.predict(digits)
    first, second = digits[answers == 0][:1], digits[answers == 1][:1]
    two = torch.cat([first.repeat(10, 1, 1, 1), second.repeat(10, 1, 1, 1)])
    collapsed = mechanism.diagnose(teacher, student, two, None)["real"]["diversity"]
    assert collapsed["pixel_distance"] == pytest.approx(0, abs=1e-3)  # however far apart the two classes are
    assert collapsed["feature_cosine"] == pytest.approx(1, abs=1e-4)
    real = mechanism.diagnose(teacher, student, digits[:200], None)["real"]["diversity"]
    assert 0.3 < real["pixel_distance"] < 1.5
    assert real["feature_cosine"] < 0.99


def test_gradient_ratios_are_means_over_the_rounds_that_were_measured():
    history = [
        {"gradient/bn": 2.0, "gradient/rca": 1.0, "gradient/tar": 4.0, "synthesis/rca": 9.0},
        {"synthesis/bn": 1.0},
        {"gradient/bn": 4.0, "gradient/rca": 6.0},
        {"gradient/bn": 0.0, "gradient/rca": 6.0},
    ]
    assert mechanism.gradient_ratios(history) == pytest.approx({"rca": (0.5 + 1.5) / 2, "tar": 2.0})
    assert mechanism.gradient_ratios([]) == {}


# All of it


def test_a_campaign_with_its_own_processes(write, tmp_path, capsys):
    path = write(arms={"backbone": CAMPAIGN["arms"]["backbone"], "noise": {"kind": "noise"}}, seeds=[0])
    command = [str(path), "--teacher", str(DIGITS_WEIGHTS), "--out", str(tmp_path / "out"), "--json"]
    assert stars.main(command) == 0, [log.read_text() for log in (tmp_path / "out" / "work").glob("*.log")]
    summary = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in summary["rows"]] == ["noise", "backbone"]
    # The same as in any other process, on any machine load.
    config = load_config(None, {**plan_runs(load_campaign(path))[0].settings, "seed": 0})
    student = make_distiller(config, load_teacher()).run(lambda *_: None)
    held = load_dataset("digits", train=True).first(300)
    assert summary["rows"][1]["accuracy"]["0"] == pytest.approx(worker.accuracy(student, held))
