"""How the three folders install as one package, and what importing it loads."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stars_deploy

ROOT = Path(__file__).parents[1]


def test_import_does_not_load_torch():
    code = "import sys, stars_deploy; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_links_make_one_package():
    for name in ("export", "targets"):
        link = ROOT / "stars_deploy" / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}"


def test_every_package_is_listed():

    listed = set(
        re.findall(r'"(stars_deploy(?:\.\w+)*)",', (ROOT / "pyproject.toml").read_text().split("package-dir")[0])
    )
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "stars_deploy").rglob("__init__.py")
        if not {"export", "targets"} & set(path.parent.relative_to(ROOT).parts)
    }
    for folder in ("export", "targets"):
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("stars_deploy", *path.parent.relative_to(ROOT).parts)))
    assert listed == found


def test_version_is_that_of_the_distribution():
    assert stars_deploy.__version__ in (ROOT / "pyproject.toml").read_text()


def test_embedded_teacher_is_small():
    assert (ROOT / "stars_deploy" / "assets" / "digits.safetensors").stat().st_size < 200_000


@pytest.mark.slow
def test_wheel_holds_one_top_level_package_and_its_files(tmp_path):
    source = shutil.copytree(
        ROOT, tmp_path / "source", symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"stars_deploy"}
    for name in (
        "stars_deploy/assets/digits.safetensors", "stars_deploy/profiles/loihi2.yaml", "stars_deploy/bounds.py",
        "stars_deploy/targets/lava/worker.py", "stars_deploy/pipeline/building.py", "stars_deploy/py.typed",
    ):  # fmt: skip
        assert name in names, name
