"""Keys of content, and the cache that keeps results under them."""

import multiprocessing
import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

from stars_deploy.errors import ArtifactError, ConfigError, FormatError
from stars_deploy.sweep import content
from stars_deploy.sweep.cache import DEFAULT_LIMIT, ResultCache, choose_cache, default_folder
from stars_deploy.sweep.content import code_version, content_key

KEY = "0" * 64


@dataclass(frozen=True)
class Point:
    x: int
    y: object = None


@dataclass(frozen=True)
class Vector:
    x: int
    y: object = None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), (2, 1)),
        ((1, 23), (12, 3)),
        (("ab", "c"), ("a", "bc")),
        ((1,), (1.0,)),
        ((1,), (True,)),
        (("1",), (1,)),
        (("a",), (b"a",)),
        ((None,), ("None",)),
        (((1, 2), 3), (1, (2, 3))),
        (((),), ()),
        ((0.1,), (np.float32(0.1),)),
        (({"a": 1},), ({"a": 2},)),
        ((Point(1),), (Point(2),)),
        ((Point(1),), (Vector(1),)),
        ((Point(1, Point(2)),), (Point(1, Vector(2)),)),
        ((np.zeros(4),), (np.zeros((2, 2)),)),
        ((np.zeros(4, np.int32),), (np.zeros(4, np.float32),)),
        ((np.arange(4),), (np.arange(4)[::-1],)),
    ],
)
def test_other_content_has_another_key(one, other):
    assert content_key(*one) != content_key(*other)


def test_equal_content_has_an_equal_key():
    matrix = np.arange(12).reshape(3, 4)
    assert content_key(matrix.T) == content_key(np.ascontiguousarray(matrix.T))  # whatever its layout in memory
    assert content_key({"a": 1, "b": (2, "c")}) == content_key({"b": [2, "c"], "a": 1})
    assert content_key(Point(1, matrix)) == content_key(Point(1, matrix.copy()))
    assert len(content_key()) == 64


def test_a_network_and_each_thing_in_it_is_in_the_key(small_chain, make_chain):
    first, *others = small_chain.populations
    changed = [
        small_chain.with_timesteps(small_chain.timesteps + 1),
        replace(small_chain, populations=(replace(first, vth=first.vth + 1), *others)),
        replace(small_chain, populations=(replace(first, decay_v=first.decay_v + 1), *others)),
        replace(small_chain, input=replace(small_chain.input, scale=16.0)),
    ]
    heavier = small_chain.projections[0].weight.copy()
    heavier.flat[0] = heavier.flat[0] - 1 if heavier.flat[0] > 0 else heavier.flat[0] + 1
    projections = (replace(small_chain.projections[0], weight=heavier), *small_chain.projections[1:])
    changed.append(replace(small_chain, projections=projections))
    keys = {content_key(graph) for graph in [small_chain, *changed]}
    assert len(keys) == 1 + len(changed)


def test_what_has_no_content_has_no_key():
    for value in (object(), Point, {1, 2}, np.array([object()])):
        with pytest.raises(TypeError, match="no content key"):
            content_key(value)


def test_the_code_is_every_source_file(monkeypatch, tmp_path):
    package = tmp_path / "package"
    (package / "targets").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "targets" / "reference.py").write_text("a = 1\n")
    monkeypatch.setattr(content.stars_deploy, "__file__", str(package / "__init__.py"))
    digest = code_version.__wrapped__
    first = digest()
    (package / "targets" / "notes.txt").write_text("not code")
    assert digest() == first
    (package / "targets" / "preset.yaml").write_text("weight: 1")
    with_preset = digest()
    (package / "targets" / "preset.yaml").write_text("weight: 2")
    assert len({first, with_preset, digest()}) == 3
    (package / "targets" / "preset.yaml").unlink()
    (package / "targets" / "reference.py").write_text("a = 2\n")
    second = digest()
    (package / "targets" / "reference.py").rename(package / "reference.py")
    assert len({first, second, digest()}) == 3
    shutil.move(package / "targets", tmp_path / "targets")
    (tmp_path / "targets" / "base.py").write_text("")
    (package / "targets").symlink_to("../targets")  # as a checkout is laid out
    assert digest() not in (first, second)


def test_code_version_does_not_depend_on_the_folder(tmp_path):
    from pathlib import Path

    import stars_deploy

    source = Path(stars_deploy.__file__).parent
    copied = shutil.copytree(source, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    before = stars_deploy.__file__
    try:
        stars_deploy.__file__ = str(copied / "__init__.py")
        assert code_version.__wrapped__() == code_version()
    finally:
        stars_deploy.__file__ = before


def refused(text):
    raise AssertionError(text)


@pytest.fixture
def cache(tmp_path):
    return ResultCache(folder=tmp_path / "cache")


def test_what_is_kept_is_found(cache):
    assert cache.find(KEY, bytes, refused) is None
    cache.keep(KEY, b"content\nof two lines")
    assert cache.find(KEY, bytes, refused) == b"content\nof two lines"
    assert cache.find(KEY, len, refused) == 20
    assert cache.find("1" * 64, bytes, refused) is None
    cache.keep(KEY, b"")
    assert cache.find(KEY, bytes, refused) == b""


def entry(cache):
    (path,) = (cache.folder / "results").iterdir()
    return path


def flip(content, position):
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"",
        lambda content: content[:10],
        lambda content: flip(content, -1),
        lambda content: flip(content, 30),
        lambda content: content.replace(b"result 1", b"result 2"),
        lambda content: content.partition(b"\n")[2],
    ],
)
def test_a_damaged_entry_is_named_and_removed(cache, damage):
    cache.keep(KEY, b"content")
    path = entry(cache)
    path.write_bytes(damage(path.read_bytes()))
    notes = []
    assert cache.find(KEY, bytes, notes.append) is None
    assert not path.exists()
    (note,) = notes
    assert str(path) in note and "damaged" in note and "computed again" in note


def test_an_entry_under_the_name_of_another_is_not_trusted(cache):
    cache.keep(KEY, b"content")
    other = "1" * 64
    shutil.copy(entry(cache), cache.folder / "results" / f"{other}.result")
    notes = []
    assert cache.find(other, bytes, notes.append) is None and len(notes) == 1
    assert cache.find(KEY, bytes, refused) == b"content"


def test_an_entry_that_cannot_be_decoded_is_damaged(cache):
    def decode(content):
        raise FormatError("result", "not an archive")

    cache.keep(KEY, b"content")
    notes = []
    assert cache.find(KEY, decode, notes.append) is None
    assert "not an archive" in notes[0] and not list((cache.folder / "results").iterdir())


def size_of(cache, content):
    cache.keep(KEY, content)
    size = entry(cache).stat().st_size
    entry(cache).unlink()
    return size


def test_the_entries_used_longest_ago_go_first(cache):
    size = size_of(cache, b"x" * 1000)
    small = replace(cache, limit=3 * size)
    for number in range(3):
        small.keep(f"{number}" * 64, b"x" * 1000)
        os.utime(small.folder / "results" / f"{str(number) * 64}.result", (number, number))
    assert small.find("0" * 64, bytes, refused)  # used now
    small.keep("3" * 64, b"x" * 1000)
    left = {path.name[0] for path in (small.folder / "results").iterdir()}
    assert left == {"0", "2", "3"}


def test_what_is_larger_than_the_limit_is_not_kept_and_removes_nothing(cache):
    size = size_of(cache, b"x" * 1000)
    small = replace(cache, limit=size)
    small.keep(KEY, b"x" * 1000)
    small.keep("1" * 64, b"x" * 1001)
    assert small.find(KEY, bytes, refused) and small.find("1" * 64, bytes, refused) is None


def test_foreign_files_stay_and_abandoned_drafts_go(cache):
    cache.keep(KEY, b"content")
    folder = cache.folder / "results"
    (folder / "notes.txt").write_text("mine")
    (folder / ".new.abc.result").write_text("being written")
    (folder / ".old.abc.result").write_text("its writer was killed")
    os.utime(folder / ".old.abc.result", (0, 0))
    replace(cache, limit=200).keep("1" * 64, b"content")
    assert {path.name for path in folder.iterdir()} == {"notes.txt", ".new.abc.result", f"{'1' * 64}.result"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    cache = ResultCache(folder=tmp_path / "file")
    assert cache.find(KEY, bytes, refused) is None
    with pytest.raises(ArtifactError, match="could not be written"):
        cache.keep(KEY, b"content")


def hammer(folder, seed):
    """Write and read the same few entries, in a cache that is always too small."""
    cache = ResultCache(folder=folder, limit=40_000)
    random = np.random.default_rng(seed)
    for _ in range(150):
        number = int(random.integers(8))
        content = bytes([number]) * 8000
        found = cache.find(f"{number}" * 64, bytes, refused)
        if found is None:
            cache.keep(f"{number}" * 64, content)
        elif found != content:
            raise AssertionError(f"entry {number} holds something else")


def test_many_processes_share_one_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=hammer, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    hammer(tmp_path, 99)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    left = list((tmp_path / "results").iterdir())
    assert left and all(path.suffix == ".result" and not path.name.startswith(".") for path in left)
    assert sum(path.stat().st_size for path in left) <= 40_000 + 3 * 8200  # what others wrote at the same moment


def test_the_default_folder_follows_the_xdg_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "stars-deploy"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_folder() == tmp_path / "home" / ".cache" / "stars-deploy"


def test_which_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("stars_deploy.sweep.cache.default_folder", lambda: tmp_path / "stars-deploy")
    assert choose_cache(None) == ResultCache(folder=tmp_path / "stars-deploy", limit=DEFAULT_LIMIT)
    assert choose_cache(tmp_path / "mine").folder == tmp_path / "mine"
    assert choose_cache(None, unwanted=True) is None
    with pytest.raises(ConfigError, match="--no-cache"):
        choose_cache(tmp_path, unwanted=True)
