import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from stars_deploy.activity import measure_activity
from stars_deploy.baseline import TIER_NAMES, AnnLayer, AnnReference
from stars_deploy.comparison import make_row, mark_pareto, tabulate_rows, write_csv
from stars_deploy.cost import estimate_cost, summarize_cost
from stars_deploy.errors import ArtifactError, ConfigError, DataError
from stars_deploy.hardware import Interval, load_profile
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.simulate import run_evaluation
from stars_deploy.targets.reference import run_reference

ANN = AnnReference(layers=(AnnLayer(name="one", macs=777, weights=70, inputs=25, outputs=11),))


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(11)
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 5, 5)),
        populations=(
            Population(name="conv", shape=(2, 5, 5), decay_v=300, vth=1500, bias=np.zeros((2, 5, 5), int)),
            Population(name="out", shape=(3,), bias=np.zeros(3, int)),
        ),
        projections=(
            ConvProjection(
                name="c", source="input", target="conv", weight=rng.integers(-5, 9, (2, 1, 3, 3)), padding=(1, 1)
            ),
            DenseProjection(name="r", source="conv", target="out", weight=rng.integers(-20, 21, (3, 50))),
        ),
        timesteps=2,
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(12).integers(0, 256, (12, 1, 5, 5))


@pytest.fixture(scope="module")
def labels(graph, images):
    return run_reference(graph.with_timesteps(4), images).classes()


@pytest.fixture(scope="module")
def rows(graph, images, labels):
    return compare_timesteps(
        graph,
        images,
        labels,
        load_profile("loihi2"),
        timesteps=[4, 1, 2],
        teacher_predictions=np.zeros(12, int),
        teacher=ANN,
        model="digits",
    )


def compare_timesteps(graph, images, labels, profile, *, timesteps, **options):
    """The same integers at each number of timesteps."""
    settings = [graph.with_timesteps(steps) for steps in timesteps]
    return compare_settings(settings, images, labels, profile, built=graph, **options)


def compare_settings(settings, images, labels, profile, **options):
    """One row for each of some networks, judged against each other."""
    return mark_pareto([make_row(one, measure_activity(one, images, labels), profile, **options) for one in settings])


def test_one_row_a_setting_in_the_order_asked(rows, graph, images, labels):
    assert [row.evaluation.timesteps for row in rows] == [4, 1, 2]
    assert rows[0].evaluation.accuracy == 1.0  # the labels are this setting's answers
    alone = run_evaluation(graph, images, labels, timesteps=1)
    assert rows[1].evaluation.accuracy == alone.accuracy < 1.0
    assert rows[1].evaluation.layers == alone.layers
    once = graph.with_timesteps(1)
    cost = estimate_cost(once, measure_activity(once, images, labels), load_profile("loihi2"), teacher=ANN)
    assert (rows[1].cost.energy, rows[1].cost.mapping.cores, rows[1].cost.ann) == (
        cost.energy, cost.mapping.cores, cost.ann,
    )  # fmt: skip
    assert rows[1].cost.latency.per_inference == cost.latency.per_inference
    assert rows[0].fidelity == (labels == 0).mean()
    assert [row.weight_bits for row in rows] == [8, 8, 8]


def test_rows_say_when_the_integers_were_made_for_another_t(rows):
    assert [row.note for row in rows] == [
        "integers made for T = 2, run as is",
        "integers made for T = 2, run as is",
        "as built",
    ]


def test_networks_quantised_again_say_so(graph, images):
    settings = [graph, graph.with_timesteps(3)]
    told = compare_settings(settings, images, None, load_profile("loihi1"), built=graph, quantized_again=True)
    assert [row.note for row in told] == [
        "as built",
        "quantised again for T = 3 and 8 bits; the student was trained for T = 2",
    ]
    assert [row.evaluation.timesteps for row in told] == [2, 3]
    plain = compare_settings(settings[1:], images, None, load_profile("loihi1"))
    assert plain[0].note == "as built"
    assert mark_pareto([]) == []


def test_more_timesteps_cost_more(rows):
    by_steps = {row.evaluation.timesteps: row.cost for row in rows}
    assert by_steps[1].energy.total.nominal < by_steps[2].energy.total.nominal < by_steps[4].energy.total.nominal
    assert by_steps[1].latency.per_inference.nominal < by_steps[4].latency.per_inference.nominal


def test_the_cheapest_and_the_best_are_pareto_best(rows):
    assert rows[0].pareto  # the most accurate
    assert rows[1].pareto  # the cheapest
    assert "accuracy" in rows[0].reason


def scored(row, accuracy, joules, timesteps, fidelity=None):
    total = Interval(nominal=joules, low=joules, high=joules)
    return replace(
        row,
        evaluation=replace(row.evaluation, accuracy=accuracy, timesteps=timesteps),
        fidelity=fidelity,
        cost=replace(row.cost, energy=replace(row.cost.energy, total=total)),
    )


def test_a_dominated_row_names_one_that_is_not(rows):
    cases = [(0.8, 1.0), (0.9, 2.0), (0.9, 3.0), (0.85, 4.0), (0.95, 5.0)]
    marked = mark_pareto([scored(rows[0], a, e, t) for t, (a, e) in enumerate(cases, start=1)])
    assert [row.pareto for row in marked] == [True, True, False, False, True]
    assert marked[2].reason == "digits T = 2, 8 bits has accuracy 0.9000 against 0.9000 for 2 J against 3 J"
    assert marked[3].reason.startswith("digits T = 2, 8 bits has accuracy 0.9000 against 0.8500")
    tied = mark_pareto([scored(rows[0], a, 1.0, t) for t, a in enumerate((0.8, 0.9, 0.95), start=1)])
    assert "T = 3, 8 bits has accuracy 0.9500" in tied[0].reason


def test_equal_rows_are_both_pareto_best(rows):
    assert [row.pareto for row in mark_pareto([scored(rows[0], 0.9, 1.0, t) for t in (1, 2)])] == [True, True]


def test_settings_are_judged_among_those_of_their_chip(rows):
    def on(chip, row):
        return replace(row, cost=replace(row.cost, energy=replace(row.cost.energy, profile=chip)))

    cases = [("a", 0.9, 2.0), ("b", 0.9, 1.0), ("a", 0.8, 2.5), ("b", 0.8, 0.5)]
    marked = mark_pareto([on(chip, scored(rows[0], share, joules, 1)) for chip, share, joules in cases])
    assert [row.pareto for row in marked] == [True, True, False, True]
    assert "for 2 J against 2.5 J" in marked[2].reason


def test_fidelity_stands_in_for_accuracy(rows):
    marked = mark_pareto([scored(rows[0], None, 1.0, 1, fidelity=0.7), scored(rows[0], None, 2.0, 2, fidelity=0.6)])
    assert [row.pareto for row in marked] == [True, False]
    assert "fidelity 0.7000 against 0.6000" in marked[1].reason
    unknown = mark_pareto([scored(rows[0], None, 1.0, 1), scored(rows[0], 0.9, 2.0, 2)])
    assert [row.pareto for row in unknown] == [None, None]
    assert "neither" in unknown[0].reason


def test_a_row_says_where_an_accumulator_could_overflow(images, labels):
    # Without decay the readout climbs by 127 x 50 x 64 a timestep: fine at T = 2, beyond 2**23 at T = 64.
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 5, 5)),
        populations=(
            Population(name="a", shape=(50,), decay_v=4096, vth=1, bias=np.zeros(50, int)),
            Population(name="out", shape=(3,), bias=np.zeros(3, int)),
        ),
        projections=(
            DenseProjection(name="p", source="input", target="a", weight=np.ones((50, 25), int)),
            DenseProjection(name="q", source="a", target="out", weight=np.full((3, 50), 127)),
        ),
        timesteps=2,
    )
    rows = compare_timesteps(graph, images, labels, load_profile("loihi1"), timesteps=[2, 64])
    assert "24-bit" not in rows[0].note
    assert "out accumulates up to 1.05 times the 24-bit limit in 64 timesteps" in rows[1].note


@pytest.mark.parametrize("answers", [[0] * 11, [0.0] * 12, [[0]] * 12])
def test_teacher_answers_must_fit(graph, images, answers):
    with pytest.raises(DataError, match="teacher_predictions"):
        compare_timesteps(
            graph, images, None, load_profile("loihi1"), timesteps=[1], teacher_predictions=np.array(answers)
        )


def test_the_table_is_json_and_complete(rows):
    table = json.loads(json.dumps(tabulate_rows(rows), allow_nan=False))
    assert [row["timesteps"] for row in table] == [4, 1, 2]
    first = table[0]
    assert first["ann_macs"] == 777
    dense = next(tier for tier in rows[0].cost.ann.tiers if tier.name == "int8_dense")
    assert first["ann_int8_dense_energy_j_low"] == dense.energy_j.low > 0
    assert first["ann_cpu_batch_1_latency_s_nominal"] is None  # nobody measured
    assert {f"ann_{name}_energy_j_nominal" for name in TIER_NAMES} <= set(first)
    assert first["synops"] == pytest.approx(first["spike_synops"] + first["input_synops"])
    for quantity in ("latency_first_output_s", "energy_dynamic_j", "energy_static_j", "energy_total_j"):
        assert first[f"{quantity}_low"] <= first[f"{quantity}_nominal"] <= first[f"{quantity}_high"]
    expected = first["energy_dynamic_j_nominal"] + first["energy_static_j_nominal"]
    assert first["energy_total_j_nominal"] == pytest.approx(expected)


def test_the_table_as_csv(rows, tmp_path):
    path = tmp_path / "comparison.csv"
    write_csv([replace(rows[0], fidelity=None), *rows[1:]], path)
    with open(path, newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [int(row["timesteps"]) for row in read] == [4, 1, 2]
    assert read[0]["fidelity"] == ""
    assert float(read[1]["energy_total_j_high"]) == rows[1].cost.energy.total.high
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.csv"]
    with pytest.raises(ConfigError, match="rows"):
        write_csv([], path)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError):
        write_csv(rows, tmp_path / "file" / "comparison.csv")


def test_the_cost_sections_of_the_report_are_json(rows, graph):
    content = summarize_cost(graph.with_timesteps(4), rows[0].evaluation, rows[0].cost)
    sections = json.loads(json.dumps(content, allow_nan=False))
    assert set(sections) == {"counts", "hardware", "latency_s", "energy_j", "ann"}
    assert {"profile", "cores", "chips", "utilisation"} <= set(sections["hardware"])
    assert {"dynamic", "static", "total"} <= set(sections["energy_j"])
    assert set(sections["latency_s"]["first_output"]) == {"nominal", "low", "high"}
    assert sections["latency_s"]["caveat"] == "neurocore bound, host and I/O excluded"
