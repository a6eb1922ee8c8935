import numpy as np
import pytest
import torch

from stars_deploy.data import load_dataset
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.teacher import load_teacher, save_teacher
from stars_deploy.training import TrainingPlan, train_teacher


def silent(done, of, text):
    pass


def trained(seed, progress=silent):
    return train_teacher(
        "vgg:8-16", load_dataset("digits", train=True), TrainingPlan(epochs=3, shift=1), seed, progress
    )


def test_trained_teacher_is_good_described_and_loadable(tmp_path):
    seen = []
    module, description = trained(0, lambda done, of, text: seen.append((done, of, text)))
    assert not module.training
    assert seen[-1][0] == seen[-1][1] == 3 * (1437 // 128)
    assert seen[-1][2].startswith("epoch 3/3, loss")
    save_teacher(module, tmp_path / "t.safetensors", description)
    teacher = load_teacher(str(tmp_path / "t.safetensors"))
    assert teacher.spec == "vgg:8-16"
    assert teacher.input.shape == (1, 8, 8)
    assert teacher.labels == tuple("0123456789")
    train = load_dataset("digits", train=True)
    assert teacher.input.mean[0] == pytest.approx(train.images.mean(), abs=1e-5)
    assert teacher.input.std[0] == pytest.approx(train.images.std(ddof=1), abs=1e-5)
    test = load_dataset("digits")
    assert (teacher.predict(torch.from_numpy(test.images)).numpy() == test.labels).mean() > 0.7  # chance is 0.1


def test_seed_decides():
    states = [trained(seed)[0].state_dict()["0.weight"] for seed in (1, 1, 2)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 1}, {"shift": -1}, {"learning_rate": 0}, {"learning_rate": float("nan")}]
)
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"training"):
        TrainingPlan(**wrong)


def test_too_little_data_and_diverging_losses_are_refused():
    data = load_dataset("digits", train=True)
    with pytest.raises(DataError, match=r"1 training images"):
        train_teacher("vgg:4", data.first(1), TrainingPlan(), 0, silent)
    with pytest.raises(ConfigError, match=r"lower the learning rate"):
        train_teacher("vgg:4", data.first(256), TrainingPlan(epochs=4, learning_rate=1e38), 0, silent)


def test_few_images_make_one_smaller_batch():
    data = load_dataset("digits", train=True).first(10)
    module, _ = train_teacher("vgg:4", data, TrainingPlan(epochs=2), 0, silent)
    assert np.isfinite(module[0].weight.detach().numpy()).all()
