"""Small problems that tests share: three blobs of images in the unit box, and classifiers fitted on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepneighbors import data, experiments, profiles
from deepneighbors.dknn import DeepKNN
from deepneighbors.knn import KNNClassifier
from deepneighbors.networks import MnistCNN

torch.set_num_threads(1)

LONGEST = ("test_workflow.py", "test_faults.py", "test_notebooks.py")  # minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that two workers end together."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def blobs(count: int, *, seed: int, classes: int = 3, spread: float = 0.12) -> tuple[Tensor, Tensor]:
    """``count`` images (count, 1, 28, 28) around one random image a class, with labels."""
    centres = torch.rand(classes, 784, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = centres[y] + spread * torch.randn(count, 784, generator=generator)
    return x.clamp(0, 1).view(-1, 1, 28, 28), y


def fitted(network: nn.Module, x: Tensor, y: Tensor, *, steps: int, least: float) -> nn.Module:
    """The network in evaluation mode after ``steps`` of Adam on a whole problem, which it then answers to at ``least``."""
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    network.eval()
    assert (network(x).argmax(1) == y).float().mean() > least
    return network


@contextmanager
def small_run(chapter: str, settings: Any, folder: Path) -> Iterator[experiments.Run]:
    """A run of a chapter whose smoke profile has these settings, with a store of its own in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(folder))
        patch.setitem(profiles.SETTINGS[chapter], "smoke", settings)
        yield experiments.Run(chapter, profile="smoke", device="cpu")


@pytest.fixture(scope="session")
def few_test_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with MNIST's training digits and 1,500 of its test digits: to answer all takes most of a small run."""
    folder, digits = tmp_path_factory.mktemp("data"), data.load("mnist")
    parts = {"train": (digits.x_train, digits.y_train), "test": (digits.x_test[:1_500], digits.y_test[:1_500])}
    arrays = {f"x_{part}": (x[:, 0] * 255).round().to(torch.uint8).numpy() for part, (x, _) in parts.items()}
    np.savez(folder / "mnist.npz", **arrays, **{f"y_{part}": y.to(torch.uint8).numpy() for part, (_, y) in parts.items()})
    return folder


@pytest.fixture(scope="module")
def on_few_test_digits(few_test_digits: Path) -> Iterator[None]:
    """The tests of a file, and the processes that they start, see those test digits alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPNEIGHBORS_DATA", str(few_test_digits))
        yield


@pytest.fixture(scope="session")
def train() -> tuple[Tensor, Tensor]:
    return blobs(180, seed=0)


@pytest.fixture(scope="session")
def test() -> tuple[Tensor, Tensor]:
    return blobs(12, seed=1)


@pytest.fixture(scope="session")
def network() -> MnistCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MnistCNN(classes=3).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def knn(train) -> KNNClassifier:
    return KNNClassifier(k=7).fit(*train)


@pytest.fixture(scope="session")
def dknn(train, network) -> DeepKNN:
    return DeepKNN(network, MnistCNN.layers, k=7).fit(*train).calibrate(*blobs(60, seed=2))
