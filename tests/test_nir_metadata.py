"""What stars-deploy writes beside the nodes of a NIR file: refused where the nodes say something else."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from nir_files import (
    deep,
    describe,
    described,
    fill,
    put,
    recurrent,
    residual,
    small,
)

from stars_deploy.errors import FormatError
from stars_deploy.targets.nir_graph.reader import read_nir
from stars_deploy.targets.nir_graph.writer import write_nir


def read(path, **options):
    return read_nir(path, **{"dt": 1e-4, "timesteps": 3, **options}).graph


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": "other"}, r"schema \('other', 1\)"),
        ({"version": 2}, r"schema \('stars-deploy nir', 2\)"),
        ({"dt": 0.0}, "dt: 0.0; allowed: a number above 0"),
        ({"dt": True}, "dt: True"),
        ({"graph_dt": "1e-3"}, "graph_dt: '1e-3'"),
        ({"timesteps": 0}, "timesteps: 0"),
        ({"timesteps": True}, "timesteps: True"),
        ({"timesteps": 10**40}, "not readable as JSON .a number of 41 digits"),
        ({"timesteps": 2.0}, "timesteps: 2.0"),
        ({"low": None}, "low: None"),
        ({"labels": [1]}, "labels"),
        ({"names": [["x"]]}, "names"),
        ({"names": [["x", 1]]}, "names"),
        ({"edges": {}}, "edges"),
        ({"inserted": "class__flatten"}, "inserted"),
        ({"normalize": []}, "normalize"),
        ({"normalize": {"name": "norm", "mean": ["a"], "std": [1.0]}}, "mean"),
        ({"normalize": None}, r"names: \['norm', 'readout'\] without a place"),
        ({"readout": {"name": "readout", "r": "a"}}, "r: 'a'"),
        ({"readout": None}, "names: .* without a place"),
        ({"biases": {"conv.0": 1}}, "biases"),
        ({"biases": {"conv.1": "type"}}, "biases: conv.1 -> type; allowed: a Conv2d without bias"),
        ({"biases": {"conv.0": "conv/lif"}}, "biases: conv.0 -> conv/lif"),
        ({"biases": {"ghost": "conv/lif"}}, "biases: ghost"),
        ({"scalars": ["head"]}, "scalars: head"),
        ({"exact": {"ghost": {"tau_mem": 1.0}}}, "exact.ghost"),
        ({"exact": {"head": {"weight": 1.0}}}, "exact.head"),
        ({"exact": {"type": {"tau_mem": 0.0071}}}, "exact.type.tau_mem: other values than the file's"),
        ({"exact": {"type": {"tau_mem": "a"}}}, "exact.type.tau_mem: what is no number"),
        ({"exact": {"type": {"tau_mem": [0.007, 0.007]}}}, "exact.type.tau_mem: other values"),
        ({"rounding": {}}, "rounding.input"),
    ],
)
def test_metadata_that_contradict_the_file(tmp_path, changed, message):
    path = tmp_path / "m.nir"
    write_nir(deep(), None, path)
    with pytest.raises(FormatError, match=rf"m\.nir: node/metadata/stars_deploy.*{message}"):
        read_nir(describe(path, **changed))


def _names(path, change):
    return {"names": [[change.get(name, name), place] for name, place in described(path)["names"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: _names(p, {"conv.0": "c"}), "edges: other edges than the file's"),
        (lambda p: _names(p, {"head": "class"}), "names: other nodes than the file's: a node twice"),
        (lambda p: {"names": described(p)["names"][1:]}, "names: other nodes than the file's: image"),
        (lambda p: {"edges": described(p)["edges"][1:]}, "edges: other edges than the file's: image -> norm"),
        (lambda p: {"edges": [*described(p)["edges"], ["image", "norm"]]}, "edges: .*an edge -> twice"),
        (lambda p: {"inserted": ["pool"], **_without(p, "pool", "class__flatten")}, "inserted: pool, a Pool2d"),
        (lambda p: {"inserted": []}, "names: other nodes than the file's: class__flatten"),
    ],
)
def test_names_and_edges_are_those_of_the_file(tmp_path, change, message):
    path = tmp_path / "m.nir"
    write_nir(deep(), None, path)
    with pytest.raises(FormatError, match=message):
        read_nir(describe(path, **change(path)))


def _without(path, place, instead):
    return {"names": [[name, instead if found == place else found] for name, found in described(path)["names"]]}


def test_an_inserted_flattening_feeds_one_node(tmp_path):
    path = tmp_path / "m.nir"
    write_nir(residual(), None, path)
    with h5py.File(path, "r+") as file:
        edges = [tuple(edge) for edge in file["node/edges"].asstr()[()]]
        put(file["node"], "edges", [*edges, ("a_flatten", "b")])
    with pytest.raises(FormatError, match="inserted: a_flatten feeds a, b"):
        read_nir(path)


def test_an_end_that_the_metadata_do_not_describe(tmp_path):
    path = tmp_path / "m.nir"
    write_nir(recurrent(), None, path)
    with h5py.File(path, "r+") as file:
        edges = [tuple(edge) for edge in file["node/edges"].asstr()[()]]
        put(file["node"], "edges", [*edges, ("w", "output")])
    with pytest.raises(FormatError, match="readout: the file ends in end"):
        read_nir(path)


def test_scalars_have_one_value(tmp_path):
    path = tmp_path / "m.nir"
    write_nir(recurrent(), None, path)
    with h5py.File(path, "r+") as file:
        put(file, "node/nodes/same/scale", np.array([0.5, 0.5, 1, 0.5, 0.5], np.float32))
    with pytest.raises(FormatError, match="scalars: same has different values"):
        read_nir(path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        '{"timesteps": ' + "9" * 200_000 + "}",
        '{"dt": NaN}',
        '{"dt": 1e999}',
        "[]",
        '"text"',
        "null",
    ],
)
def test_metadata_that_are_no_description(tmp_path, text):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        fill(file["node"], {"metadata": {"stars_deploy": text}})
    with pytest.raises(FormatError, match=r"node/metadata/stars_deploy: (not readable as JSON|schema)"):
        read(path)


def test_metadata_of_others_are_not_read(tmp_path):
    path = small(tmp_path / "m.nir", lif={"metadata": {"any": np.ones(3)}})
    with h5py.File(path, "r+") as file:
        fill(file["node"], {"metadata": {"note": "text", "numbers": np.ones((2, 2))}})
    assert read(path).output.name == "lif"
