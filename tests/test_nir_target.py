"""The nir target: integers to a NIR file and back, by way of the floats that they stand for."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from conformance_graphs import GRAPHS
from hypothesis import given, settings
from hypothesis import strategies as st
from nir_files import describe, described, put, small
from random_graphs import graphs

from stars_deploy.errors import FormatError, StarsDeployError
from stars_deploy.export.execution import run_float
from stars_deploy.lowering.dequantization import dequantize
from stars_deploy.lowering.passes import canonicalize, lower
from stars_deploy.lowering.rounding import round_graph, rounding_of
from stars_deploy.quantized import find_difference
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.nir_graph import TARGET, read_integers, read_nir
from stars_deploy.targets.reference import run_reference


def test_the_target_is_listed():
    assert (TARGET.name, TARGET.filename) == ("nir", "model.nir")
    assert TARGET.availability().ok and "NIR" in TARGET.summary


def test_integers_come_back(small_chain, make_images, tmp_path):
    path = tmp_path / TARGET.filename
    TARGET.write(small_chain, path)
    back = TARGET.read(path, small_chain.timesteps)
    assert find_difference(small_chain, back) == ""
    assert back.labels == small_chain.labels and back.input == small_chain.input
    assert [p.scale for p in back.populations] == [p.scale for p in small_chain.populations]
    images = make_images(small_chain, 3)
    expected = run_reference(small_chain, images)
    assert compare_records(expected, TARGET.execute(path, images, small_chain.timesteps)).mismatches == 0
    assert sum(spikes.sum() for spikes in expected.spikes.values()) > 50
    longer = run_reference(small_chain.with_timesteps(7), images)
    assert compare_records(longer, TARGET.execute(path, images, 7)).mismatches == 0


def test_the_encoding_is_that_of_the_input(small_chain, tmp_path):
    for graph, word in ((small_chain, "direct"), (GRAPHS["spikes as input"], "spikes")):
        TARGET.write(graph, tmp_path / "m.nir")
        assert described(tmp_path / "m.nir")["encoding"].split(":")[0] == word


def test_random_graphs_come_back_or_are_refused_by_name(tmp_path_factory):
    path = tmp_path_factory.mktemp("nir") / "m.nir"
    written = []

    @settings(max_examples=60, deadline=None)
    @given(graphs(biased_by_image=False, flat_input=st.booleans()))
    def check(example):
        graph, _ = example
        try:
            TARGET.write(graph, path)
        except StarsDeployError as error:
            assert error.where
            return
        written.append(graph)
        assert find_difference(graph, read_integers(path)) == ""

    check()
    assert len(written) > 10


def test_the_origin_is_written_where_there_is_one(small_chain, tmp_path):
    """Its numbers are the student's own, and not those that the integers stand for."""
    origin = canonicalize(dequantize(small_chain, dt=2e-3))
    weight = origin.node("readout.w").weight
    nudged = tuple(
        type(n)(name=n.name, weight=weight * (1 + 2**-20), bias=n.bias) if n.name == "readout.w" else n
        for n in origin.nodes
    )
    origin = canonicalize(origin.with_nodes(nudged, origin.edges))
    TARGET.write(small_chain, tmp_path / "m.nir", origin)
    file = read_nir(tmp_path / "m.nir")
    assert file.graph.dt == 2e-3 and file.rounding == rounding_of(small_chain)
    np.testing.assert_array_equal(file.graph.node("readout.w").weight, origin.node("readout.w").weight)
    assert not np.array_equal(file.graph.node("readout.w").weight, dequantize(small_chain).node("readout.w").weight)
    assert (
        find_difference(TARGET.read(tmp_path / "m.nir", 4), round_graph(lower(origin), rounding_of(small_chain))) == ""
    )


def test_floats_of_the_file_run_elsewhere(small_chain, make_images, tmp_path):
    """Without our metadata, on the grid of other tools: nearly the integers' spikes (they truncate, floats do not)."""
    TARGET.write(small_chain, tmp_path / "m.nir")
    describe(tmp_path / "m.nir", remove=True)
    graph = read_nir(tmp_path / "m.nir", dt=1e-4, timesteps=small_chain.timesteps).graph
    images = make_images(small_chain, 3)
    record = run_float(graph, images / small_chain.input.scale)
    for name, spikes in run_reference(small_chain, images).spikes.items():
        if small_chain.population(name).fires:
            assert (record.values[name] != spikes).mean() < 0.05 < spikes.mean()


def test_a_strangers_file_has_no_integers(tmp_path):
    with pytest.raises(FormatError, match=r"NIR holds no dt|which integers"):
        read_integers(small(tmp_path / "m.nir"))


def test_a_file_without_its_rounding_has_no_integers(small_chain, tmp_path):
    path = tmp_path / "m.nir"
    TARGET.write(small_chain, path)
    with pytest.raises(FormatError, match=r"does not say which integers its numbers become.*stars-deploy export"):
        read_integers(describe(path, rounding=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["input"].update(name="other"), "rounding.input: other"),
        (lambda r: r["input"].update(shape=[1, 2]), r"rounding.input: image \(1, 2\)"),
        (lambda r: r["input"].update(shape=[2.5]), "rounding.input.shape"),
        (lambda r: r["input"].update(scale="1"), "rounding.input.scale"),
        (lambda r: r["input"].update(biases=1), "rounding.input.biases: 1"),
        (lambda r: r["input"]["precision"].update(bits=99), "precision: "),
        (lambda r: r["input"]["precision"].update(signed=1), "precision.signed: 1"),
        (lambda r: r["scales"].update(ghost=1.0), "rounding.scales: unknown ghost"),
        (lambda r: r["scales"].update(conv0=-1.0), "rounding.scales.conv0: -1.0"),
        (lambda r: r["scales"].pop("conv0"), "rounding.scales: not of the populations: conv0"),
        (lambda r: r["precisions"].pop("conv0.w"), "rounding.precisions: nothing for conv0.w"),
        (lambda r: r["precisions"].update(ghost=r["precisions"]["conv0.w"]), "rounding.precisions: unknown ghost"),
        (lambda r: r["resets"].update(ghost=[1, 1]), "rounding.resets: unknown ghost"),
        (lambda r: r["resets"].update(conv0=[1]), "rounding.resets.conv0"),
        (lambda r: r["resets"].update(conv0=[-1, 0]), "rounding.resets.conv0"),
    ],
)
def test_a_rounding_that_does_not_fit(small_chain, tmp_path, change, message):
    path = tmp_path / "m.nir"
    TARGET.write(small_chain, path)
    rounding = described(path)["rounding"]
    change(rounding)
    with pytest.raises(FormatError, match=rf"m\.nir: .*{message}"):
        read_integers(describe(path, rounding=rounding))


def test_files_from_before_images_could_set_biases_are_read(small_chain, tmp_path):
    path = tmp_path / "m.nir"
    TARGET.write(small_chain, path)
    rounding = described(path)["rounding"]
    assert rounding["input"].pop("biases") == ""
    assert find_difference(read_integers(describe(path, rounding=rounding)), small_chain) == ""


def test_weights_that_were_changed_make_other_integers(small_chain, tmp_path):
    path = tmp_path / "m.nir"
    TARGET.write(small_chain, path)
    with h5py.File(path, "r+") as file:
        weight = file["node/nodes/readout_w/weight"][()]
        put(file, "node/nodes/readout_w/weight", -weight)
    assert find_difference(small_chain, read_integers(path)) == "readout.w.weight"
