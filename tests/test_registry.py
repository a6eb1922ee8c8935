"""Which backbones and objectives there are, and those that other packages offer."""

import sys
import textwrap

import pytest
import torch

from stars_deploy.config import SynthesisConfig
from stars_deploy.errors import ConfigError
from stars_deploy.synthesis import registry
from stars_deploy.synthesis.registry import (
    backbone_names,
    build_backbone,
    find_backbone,
    find_objective,
    objective_names,
)
from stars_deploy.teacher import load_teacher

OWN = {"fast", "dfq", "cmi", "deepinversion", "noise"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package with the given source and entry points, and forget it afterwards."""

    def install(source, entries):
        (tmp_path / "offering.py").write_text(textwrap.dedent(source))
        info = tmp_path / "offering-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entries))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "offering", raising=False)

    yield install
    sys.modules.pop("offering", None)


def test_own_parts_are_found_by_name():
    assert set(backbone_names()) >= OWN
    assert {"bn", "onehot", "adversarial", "rca", "tar", "diversity", "balance", "tv"} <= set(objective_names())
    assert all(find_backbone(name).name == name for name in OWN)
    assert find_objective("tar").name == "tar"


@pytest.mark.parametrize(("find", "where"), [(find_backbone, "synthesis.backbone"), (find_objective, "objectives")])
def test_unknown_names_are_answered_with_the_known(find, where):
    with pytest.raises(ConfigError, match=rf"{where}.*magic.*(cmi|rca)"):
        find("magic")


def test_another_package_offers_an_objective(package):
    package(
        """
        from stars_deploy.synthesis.objective import Objective

        class Bright(Objective):
            name = "bright"

            def forward(self, seen):
                return -seen.images.mean()
        """,
        "[stars_deploy.objectives]\nbright = offering:Bright\n",
    )
    assert "bright" in objective_names()
    config = SynthesisConfig(
        batch=10, objectives={"bn": 0, "onehot": 0, "adversarial": 0, "diversity": 0, "bright": 1.0},
        options={"warmup_steps": 40, "width": 4, "latent": 8},
    )  # fmt: skip
    backbone = build_backbone(load_teacher(), config, "bn", torch.Generator().manual_seed(0))
    batch = backbone.synthesize(None, None, 0.0)
    assert list(batch.terms) == ["bright"]
    assert float(batch.images.mean()) > 0.5


@pytest.mark.parametrize(
    ("source", "words"),
    [("raise RuntimeError('broken on import')", "broken on import"), ("Bright = 3", r"a int; allowed: a class")],
)
def test_packages_that_fail_are_named(package, source, words):
    package(source, "[stars_deploy.objectives]\nbright = offering:Bright\n")
    with pytest.raises(ConfigError, match=words):
        find_objective("bright")


def test_scripts_register_their_own(monkeypatch):
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))

    class Own(find_backbone("noise")):
        name = "own"

    registry.register_backbone(Own)
    assert find_backbone("own") is Own


def test_options_are_checked_by_name():
    teacher = load_teacher()
    with pytest.raises(ConfigError, match=r"synthesis\.options.*speed"):
        build_backbone(teacher, SynthesisConfig(options={"speed": 3}), "bn", torch.Generator())
    with pytest.raises(ConfigError, match=r"synthesis\.objectives\.tar.*threshold"):
        build_backbone(
            teacher, SynthesisConfig(objectives={"tar": {"weight": 1, "threshold": 2}}), "bn", torch.Generator()
        )
    with pytest.raises(ConfigError, match=r"every weight is 0"):
        zero = dict.fromkeys(("bn", "onehot", "adversarial", "diversity"), 0)
        build_backbone(teacher, SynthesisConfig(objectives=zero), "bn", torch.Generator())
