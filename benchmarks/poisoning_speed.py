"""Speed of what chapter 3 spends its time on, as ratios to peers measured in the same run.

    python benchmarks/poisoning_speed.py [--points 60000] [--batch 500]

Training: seconds a step of Adam on the report's network: plain, plain with freed memory kept, and filtered so. Deep kNN
on its own training points: seconds for all of them left out of themselves, k = 75 in all four layers; and for 1,000 of them
by bounds, against all distances. (Of all points at once the plain search compares each pair once: half of its time.)
"""

import argparse
import time

import torch
from torch.nn.functional import cross_entropy

from deepneighbors import data
from deepneighbors._allocator import keep_freed_memory
from deepneighbors.bounded_search import BoundedDeepKNN, BoundedNeighbors
from deepneighbors.data import Dataset
from deepneighbors.dknn import DeepKNN
from deepneighbors.dknn_training import other_neighbors
from deepneighbors.neighbors import NearestNeighbors
from deepneighbors.networks import FilteredMnistCNN, MnistCNN
from deepneighbors.training import fit_classifier

STEPS, SAMPLE = 20, 1_000


def step_seconds(network: MnistCNN, x: torch.Tensor, y: torch.Tensor) -> float:
    """Shortest time of some steps."""
    solver, times = torch.optim.Adam(network.parameters()), []
    for _ in range(STEPS):
        start = time.perf_counter()
        solver.zero_grad()
        cross_entropy(network(x), y).backward()
        solver.step()
        times.append(time.perf_counter() - start)
    return min(times)


def training(digits: Dataset, batch: int) -> None:
    """Print the ratio of steps."""
    x, y = digits.x_train[:batch], digits.y_train[:batch]
    plain = step_seconds(MnistCNN(conv2_padding=0), x, y)
    print(f"a step of {batch} images: plain {1e3 * plain:.0f} ms")
    keep_freed_memory()
    for name, network in (("plain, memory kept", MnistCNN(conv2_padding=0)), ("filtered, memory kept", FilteredMnistCNN())):
        spent = step_seconds(network, x, y)
        print(f"  {name}: {1e3 * spent:.0f} ms, ratio {spent / plain:.2f}")


def neighbors(digits: Dataset, points: int) -> None:
    """Print times of searches over training points, and of what comes before."""
    x, y = digits.x_train[:points], digits.y_train[:points]
    trained = fit_classifier(FilteredMnistCNN(), x, y, epochs=1, batch_size=500, learning_rate=2e-3)
    network = MnistCNN(conv2_padding=0).eval()
    network.load_state_dict(trained.state_dict())
    start = time.perf_counter()
    bounded = BoundedDeepKNN(network, MnistCNN.layers, k=75).fit(x, y)
    fitted = time.perf_counter() - start
    other_neighbors(bounded)
    whole = time.perf_counter() - start
    print(f"{points} training points, left out of themselves: {whole:.0f} s, of which activations and axes {fitted:.0f} s")
    for layer, index in bounded.indexes_.items():
        if isinstance(index, BoundedNeighbors) and index.bounded:
            print(f"  {layer}: {index.compared:.0f} rows of {points} compared in full for a point")
    sample = torch.randperm(points, generator=torch.Generator().manual_seed(0))[:SAMPLE]
    times = []
    for classifier in (bounded, _plain(bounded)):
        start = time.perf_counter()
        other_neighbors(classifier, sample)
        times.append(time.perf_counter() - start)
    ratio = times[0] / times[1]
    print(f"  {len(sample)} of them: by bounds {times[0]:.1f} s, all distances {times[1]:.1f} s, ratio {ratio:.2f}")


def _plain(bounded: DeepKNN) -> DeepKNN:
    """The same classifier with the same rows, searched as usual."""
    plain = DeepKNN(bounded.network, bounded.layers, k=bounded.k, metric=bounded.metric)
    plain.x_, plain.labels_, plain.classes_ = bounded.x_, bounded.labels_, bounded.classes_
    plain.indexes_ = {}
    for layer, index in bounded.indexes_.items():
        plain.indexes_[layer] = NearestNeighbors(metric=plain.metric).fit(index.database_)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=500)
    options = parser.parse_args()
    digits = data.load("mnist")
    training(digits, options.batch)
    neighbors(digits, options.points)


if __name__ == "__main__":
    main()
