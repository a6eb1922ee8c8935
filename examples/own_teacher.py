"""A teacher of your own: a network in your file, its weights, and from them a verified `.net`.

    python examples/own_teacher.py [OUT]

The command line does the same with the weights that this writes:

    stars-deploy build --teacher examples/own_teacher.py:make_network --weights OUT/weights.safetensors \
        --dataset digits --target netx
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.data import load_dataset
from stars_deploy.pipeline import build, load_config


class Network(nn.Module):
    """A plain chain: convolution, batch norm, ReLU; strides instead of pooling."""

    # What the teacher expects of its input: stars-deploy reads these three.
    input_shape = (1, 8, 8)
    mean = (0.3,)
    std = (0.38,)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(24)
        self.classifier = nn.Linear(24 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images."""
        values = functional.relu(self.norm1(self.conv1(images)))
        values = functional.relu(self.norm2(self.conv2(values)))
        return self.classifier(torch.flatten(values, 1))


def make_network() -> Network:
    """Make the network without weights: what `--teacher examples/own_teacher.py:make_network` calls."""
    return Network()


def train_weights(path: Path) -> None:
    """Stand in for the training that you did long ago."""
    torch.manual_seed(0)
    data = load_dataset("digits", train=True)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    network = make_network().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(images)).split(64):
            normalized = (images[batch] - Network.mean[0]) / Network.std[0]
            loss = functional.cross_entropy(network(normalized), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), str(path))


def main(out: Path) -> None:
    """Train, then build from nothing but the network and its weights."""
    weights = out / "weights.safetensors"
    train_weights(weights)
    config = load_config(
        None,
        {
            "teacher": {"spec": f"{__file__}:make_network", "weights": str(weights)},
            "data": {"name": "digits"},  # to measure only: the distiller never sees it
            "distill": {"steps": 100},
            "targets": ["netx"],
        },
    )
    result = build(config, out / "build")
    accuracy = result.report["accuracy"]
    print(f"teacher {accuracy['teacher']:.3f}, chip {accuracy['quantized']:.3f}: {result.directory / 'model.net'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-teacher"))
