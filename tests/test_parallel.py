"""Two processes of torchrun against one with twice the batch."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from stars_deploy.config import load_config
from stars_deploy.distill.parallel import Parallel, announced, processes
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.registry import register_backbone
from stars_deploy.teacher import load_teacher
from stars_deploy.weights import read_tensors

STEPS = 6
SCRIPT = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from test_parallel import FixedImages, settings
from stars_deploy.distill.parallel import processes
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.synthesis.registry import register_backbone
from stars_deploy.teacher import load_teacher
register_backbone(FixedImages)
threads = lambda: len(list(Path("/proc/self/task").glob("*")))
folder, spec, backbone = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
before = threads()
with processes() as parallel:
    run = make_distiller(settings(spec, backbone, batch=8), load_teacher(), parallel)
    file = folder / "c.safetensors"
    if file.exists():
        run.restore(file)
    run.run(lambda *_: None, file if len(sys.argv) > 5 else None)
    parts = {name: value.clone() for name, value in run.student.state_dict().items()}
    torch.save([parts, run.pool.images, run.history], folder / f"rank{parallel.rank}.pt")
    torch.save(run.held_out(10), folder / f"fresh{parallel.rank}.pt")
    inside = threads()
# gloo's threads have ended, although the distiller is there: one with a tensor left would abort the process at its end.
(folder / f"threads{parallel.rank}.json").write_text(json.dumps([before, inside, threads()]))
"""


class FixedImages(Backbone):
    """The same images whatever the process and the seed."""

    name = "fixed"
    base_weights = {"bn": 1.0}  # noqa: RUF012

    def synthesize(self, student, pool, progress):
        images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(len(pool) // 40))
        return SynthesizedBatch(images=images, wanted=self.pure(torch.arange(20) % 10), terms={})


def settings(spec, backbone, batch):
    options = {"warmup_steps": 2, "width": 4, "latent": 8} if backbone in ("fast", "dfq") else {}
    return load_config(
        None,
        {
            "student": {"spec": spec}, "timesteps": 2, "method": "bn",
            "distill": {"steps": STEPS, "batch": batch, "steps_per_round": 2, "checkpoint_every": 3,
                        "learning_rate": 1e-3, "mixing": ["mixup"]},
            "synthesis": {"backbone": backbone, "batch": 20, "options": options},
        },
    )  # fmt: skip


def torchrun(*arguments, code=0, environment=()):
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)},
    )  # fmt: skip
    assert result.returncode == code, result.stderr[-3000:]
    return result


def two_processes(folder, spec, backbone, *more):
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    torchrun(script, Path(__file__).parent, folder, spec, backbone, *more)
    for rank in (0, 1):
        before, inside, after = json.loads((folder / f"threads{rank}.json").read_text())
        assert after == before and (before == 0 or inside > before)  # 0 is where the system has no /proc
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


class DoublePool(Parallel):
    """One process that puts what two would make into its pool."""

    def gather(self, values):
        return [values, values]


LEAVES = """
import sys
import torch
from torch import distributed
from stars_deploy.distill.parallel import Parallel
torch.set_num_threads(1)
for count in range(400):
    distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{sys.argv[1]}/{count}")
    for _ in range(2):
        distributed.all_gather([torch.zeros(1000)], torch.ones(1000))
    Parallel(0, 1).leave()
print(count + 1, distributed.is_initialized())
"""


def test_leaving_waits_for_no_thread_that_waits_for_it(tmp_path):
    """With the GIL held it hung within 400 times: gloo's thread frees a tensor while the main one joins it."""
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "400 False\n"


@pytest.mark.parametrize("spec", ["inherit", "vgg:4-6"])
def test_two_processes_are_one_with_the_doubled_batch(tmp_path, spec):
    (first, pool, history), (second, other_pool, other_history) = two_processes(tmp_path, spec, "fixed")
    assert torch.equal(pool, other_pool)
    assert history == other_history
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    register_backbone(FixedImages)
    alone = make_distiller(settings(spec, "fixed", batch=16), load_teacher(), DoublePool())
    alone.run(lambda *_: None)
    assert torch.equal(alone.pool.images, pool)
    for mine, theirs in zip(alone.history, history, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3)
    assert alone.history[0]["kl"] == pytest.approx(history[0]["kl"], rel=1e-4)
    # Adam divides by the size of a gradient: where it is next to nothing, rounding decides the sign of a step.
    for name, value in alone.student.state_dict().items():
        assert torch.allclose(value.float(), first[name].float(), atol=2e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["fast", "dfq"])
def test_processes_make_images_of_their_own_and_go_on_exactly(tmp_path, backbone):
    (whole, pool, _), (other, other_pool, _) = two_processes(tmp_path, "inherit", backbone, "checkpoint")
    assert torch.equal(pool, other_pool)
    assert all(torch.equal(value, other[name]) for name, value in whole.items())
    count = 20 if backbone == "fast" else 80
    assert not torch.equal(pool[:count], pool[count : 2 * count])
    fresh = [torch.load(tmp_path / f"fresh{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert not torch.equal(*fresh)
    # The file that was left is of step 3, in the middle of a round.
    assert read_tensors(tmp_path / "c.safetensors")[1]["distiller"]["step"] == 3
    (again, again_pool, _), _ = two_processes(tmp_path, "inherit", backbone, "checkpoint")
    assert torch.equal(again_pool, pool)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    assert torch.equal(torch.load(tmp_path / "fresh1.pt", weights_only=True), fresh[1])


@pytest.mark.slow
def test_build_runs_under_torchrun(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"synthesis": {"batch": 20, "options": {"warmup_steps": 2}}, "held_out_images": 16}))
    result = torchrun(
        "-m", "stars_deploy", "build", "--target", "netx", "--steps", "12", "--limit", "20", "--no-measure-cpu",
        "--config", config, "--threads", "1", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert report["verification"]["netx"]["passed"]
    assert len((tmp_path / "out" / "distill.jsonl").read_text().splitlines()) == 2
    header = read_tensors(tmp_path / "out" / "student.safetensors")[1]
    assert "student" in header


def test_one_process_is_the_whole():
    with processes(environment={}) as parallel:
        assert (parallel.rank, parallel.world, parallel.leads) == (0, 1, True)
        value = torch.arange(4.0)
        assert parallel.gather(value)[0] is value
        assert torch.equal(parallel.mean(value), value)
        assert torch.equal(parallel.own(value), value)
        assert parallel.agree(7) == 7
        parallel.wait()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK 2 of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "no number"),
    ],
)
def test_half_an_environment_is_refused(environment, words):
    with pytest.raises(ConfigError, match=words):
        announced(environment)


def test_environment_of_one_process_is_none():
    assert announced({"WORLD_SIZE": "1", "RANK": "0"}) == (0, 1)
    assert announced({}) == (0, 1)
