"""The main job on real images, shortened; the full run's report is under docs/results."""

import pytest

from stars_deploy.config import load_config
from stars_deploy.pipeline import build, train


@pytest.mark.slow
@pytest.mark.shared
def test_fashion_mnist_from_training_images_to_verified_net(tmp_path, shared):
    root = str(shared / "data")
    teacher = train("fashion-mnist", "vgg:8-16-32", tmp_path / "teacher.safetensors", root=root, epochs=2, flip=True)
    assert teacher["test_accuracy"] > 0.83
    config = load_config(
        None,
        {
            "teacher": {"spec": str(tmp_path / "teacher.safetensors")},
            "data": {"name": "fashion-mnist", "root": root, "limit": 1000},
            "distill": {"steps": 100},
            "targets": ["lava"],
        },
    )
    report = build(config, tmp_path / "run").report
    assert report["accuracy"]["quantized"] > 0.7
    assert abs(report["accuracy"]["student"] - report["accuracy"]["quantized"]) < 0.02
    for verification in report["verification"].values():
        assert verification["passed"] or not verification["ran"]
    assert report["verification"]["netx"]["compared_spikes"] > 16 * 4 * 6272
