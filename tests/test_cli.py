"""The command line as a user and as a script meet it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stars_deploy.cli import app

COMMANDS = ["build", "export", "simulate", "compare", "verify", "teacher", "targets", "doctor"]
SHORT = {
    "distill": {"steps": 20, "checkpoint_every": 10},
    "synthesis": {"batch": 64, "options": {"warmup_steps": 10}},
    "held_out_images": 64,
    "threads": 1,
    "measure_cpu": False,
    "sweep": [],
}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "short.yaml"
    config.write_text(json.dumps(SHORT))  # JSON is YAML
    result = run(
        "build", "--target", "netx", "--config", config, "--dataset", "digits", "--out", folder / "run", "--json"
    )
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_common_options(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    for word in ("Example", "--json", "--version", "--verbose"):
        assert word in result.stdout, word


def test_help_says_the_defaults():
    words = run("build", "--help").stdout
    assert "(default 4)" in words and "(default runs/TEACHER-METHOD-tT)" in words and "--no-trust" not in words


def test_version():
    assert run("--version").stdout.startswith("stars-deploy 0")
    assert run("build", "--version").stdout == run("--version").stdout


def test_command_line_does_not_wait_for_torch():
    code = "import sys, stars_deploy.cli; sys.exit(int(bool({'torch', 'h5py', 'lava', 'sklearn'} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_build_json_is_the_report(built):
    folder, report = built
    assert report == json.loads((folder / "run" / "report.json").read_text())


def test_build_prints_tables(built):
    folder, report = built
    result = run("build", "--target", "netx", "--config", folder / "short.yaml", "--dataset", "digits",
                 "--out", folder / "run", "--resume")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{100 * report['accuracy']['quantized']:.2f} %" in result.stdout
    for words in ("identical", "estimate for loihi2", "host and I/O excluded", "reconstructed from the abstract"):
        assert words in result.stdout, words


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "RUN", "--limit", "20"],
        ["compare", "RUN", "--timesteps", "1,2", "--limit", "20"],
        ["verify", "RUN", "--against", "netx"],
        ["export", "RUN/model.net", "--target", "netx", "--out", "OUT"],
        ["targets"],
        ["doctor"],
    ],
)
def test_json_is_the_only_thing_on_stdout(built, tmp_path, arguments):
    folder, _ = built
    places = {"RUN": folder / "run", "RUN/model.net": folder / "run" / "model.net", "OUT": tmp_path}
    result = run(*(places.get(argument, argument) for argument in arguments), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    plain = run(*(places.get(argument, argument) for argument in arguments))
    assert plain.exit_code == 0 and plain.stdout.strip()


def test_compare_writes_the_table_it_prints(built, tmp_path):
    folder, _ = built
    result = run(
        "compare", folder / "run", "--timesteps", "1,4", "--limit", "20", "--csv", tmp_path / "t.csv", "--json"
    )
    rows = json.loads(result.stdout)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].split(",")[:2] == list(rows[0])[:2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--target", "gpu", "--out", "OUT"], ["gpu", "netx"]),
        (["build", "--target", "netx", "--timesteps", "0", "--out", "OUT"], ["timesteps", "0"]),
        (["build", "--target", "netx", "--bits", "9", "--out", "OUT"], ["bits", "9"]),
        (["build", "--target", "netx", "--method", "magic", "--out", "OUT"], ["method", "magic"]),
        (["build", "--target", "netx", "--weights", "missing.safetensors", "--out", "OUT"], ["missing.safetensors"]),
        (["build", "--target", "netx", "--input-shape", "a,b", "--out", "OUT"], ["--input-shape", "a,b"]),
        (["build", "--target", "netx", "--config", "missing.yaml", "--out", "OUT"], ["missing.yaml"]),
        (["simulate", "missing"], ["missing", "does not exist"]),
        (["compare", "missing"], ["missing"]),
        (["verify", "missing.net"], ["missing.net"]),
        (["export", "missing.safetensors", "--target", "netx", "--out", "OUT"], ["missing.safetensors"]),
        (["teacher", "--dataset", "digits", "--arch", "resnet", "--out", "OUT.safetensors"], ["resnet", "vgg:"]),
        (["simulate", "--nonsense"], ["nonsense"]),
    ],
)
def test_wrong_input_exits_2_and_says_what(tmp_path, arguments, words):
    places = {"OUT": tmp_path / "out", "OUT.safetensors": tmp_path / "out.safetensors"}
    result = run(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_error_as_json(tmp_path):
    result = run("simulate", tmp_path / "missing.net", "--json")
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == 2 and error["exit_code"] == 2
    assert error["where"].endswith("missing.net") and error["remedy"]


def test_unknown_setting_in_yaml_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("distill:\n  stepz: 3\n")
    result = run("build", "--target", "netx", "--config", tmp_path / "c.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "distill.stepz" in result.stderr


def test_difference_exits_1_and_names_the_place(built, tmp_path):
    import shutil

    import h5py

    folder, _ = built
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    with h5py.File(copy / "model.net", "r+") as file:
        file["layer/1/bias"][...] = file["layer/1/bias"][...] + 1000
    result = run("verify", copy, "--against", "netx")
    assert result.exit_code == 1
    assert "lif1" in result.stderr and "timestep" in result.stderr and "neuron" in result.stderr


def _start(folder, limit=None):
    """Start a build in a process of its own, like a shell does."""
    script = Path(sys.executable).parent / "stars-deploy"
    return subprocess.Popen(
        [str(script), "build", "--target", "netx", "--config", str(folder / "long.yaml"), "--out", str(folder / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=limit, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _write_long(folder, steps):
    (folder / "long.yaml").write_text(json.dumps({**SHORT, "distill": {"steps": steps, "checkpoint_every": 10}}))


def test_interrupt_exits_2_and_leaves_nothing_half_written(tmp_path):
    _write_long(tmp_path, 100_000)
    process = _start(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert "--resume" in stderr and "Traceback" not in stderr
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "checkpoint.safetensors", "distill.jsonl", "previews"}


def test_full_disk_exits_2_and_leaves_nothing_half_written(tmp_path):
    _write_long(tmp_path, 10)

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails with EFBIG, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))  # the settings fit, nothing else does

    process = _start(tmp_path, small_files)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2, stderr
    assert "could not be written" in stderr and "free some space" in stderr
    left = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert left <= {"config.yaml", "distill.jsonl", "previews"}
    for line in (tmp_path / "run" / "distill.jsonl").read_text().splitlines():
        json.loads(line)  # whole
