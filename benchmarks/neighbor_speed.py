"""Speed of exact search and of the attacks on kNN, as ratios to peers measured in the same run.

    python benchmarks/neighbor_speed.py [--queries 2000] [--images 20]

Search: seconds of 2,000 queries at k = 75 in 60,000 x 784, over those of the bare matrix product, for this library, faiss
and scikit-learn. Attacks: seconds a digit on cosine 75-NN over 60,000 training digits, 5 constants of 500 steps.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sklearn.neighbors import NearestNeighbors as SklearnNeighbors

from deepneighbors import data
from deepneighbors.attacks import GradientAttack, MinimumNormAttack, Schedule, VoteMarginAttack
from deepneighbors.knn import KNNClassifier
from deepneighbors.neighbors import NearestNeighbors

K = 75


def seconds(work: Callable[[], object], *, repeats: int = 3) -> float:
    """Shortest wall time of a few runs: the least disturbed."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def search(queries: torch.Tensor, database: torch.Tensor) -> None:
    """Print the ratios of exact search."""
    ours = NearestNeighbors().fit(database)
    faiss = NearestNeighbors(backend="faiss").fit(database)
    sklearn = SklearnNeighbors(n_neighbors=K, algorithm="brute").fit(database.numpy())
    product = seconds(lambda: queries @ database.T)
    print(f"search, {len(queries)} queries, k = {K}, {len(database)} x {database.shape[1]}")
    print(f"  {'bare product':<16}{product:8.2f} s   1.00")
    peers = {
        "this library": lambda: ours.kneighbors(queries, K),
        "faiss flat": lambda: faiss.kneighbors(queries, K),
        "scikit-learn": lambda: sklearn.kneighbors(queries.numpy()),
    }
    for name, work in peers.items():
        spent = seconds(work, repeats=2)
        print(f"  {name:<16}{spent:8.2f} s   {spent / product:.2f}")


def attacks(classifier: KNNClassifier, x: torch.Tensor, y: torch.Tensor) -> None:
    """Print seconds a digit, success and mean distance of each attack."""
    chosen = {
        "gradient, as released": GradientAttack(constant=10.0, schedule=Schedule(steps=500, released=True)),
        "gradient, corrected": GradientAttack(constant=10.0, schedule=Schedule(steps=500)),
        "minimum norm, rules of 2020": MinimumNormAttack(search_steps=5, steps=500),
        "vote margin": VoteMarginAttack(softness=0.02, targets=4),
    }
    print(f"attacks on cosine {K}-NN, {len(x)} digits")
    for name, attack in chosen.items():
        start = time.perf_counter()
        found = attack(classifier, x, y)
        spent = (time.perf_counter() - start) / len(x)
        success, mean = float(found.success.float().mean()), float(found.distance[found.success].mean())
        print(f"  {name:<28}{spent:6.2f} s a digit   success {success:.2f}   mean L2 {mean:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    digits = data.load("mnist")
    search(digits.x_test[: options.queries].flatten(1), digits.x_train.flatten(1))
    classifier = KNNClassifier(k=K).fit(digits.x_train, digits.y_train)
    attacks(classifier, digits.x_test[: options.images], digits.y_test[: options.images])


if __name__ == "__main__":
    main()
