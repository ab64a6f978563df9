"""Speed of last-layer influence, as ratios to the released procedure and to captum, measured in the same run.

    pip install captum
    python benchmarks/influence_speed.py [--train 49000] [--queries 1000]

Made-up embeddings of the paper's sizes (64 dimensions, 10 classes), overlapping as those of a trained network do; the layer
is fitted to them. Ours and captum's exact influence function answer the same question: the same Hessian, the same damping,
all scores of all queries. The released procedure (LiSSA through the whole network, one query at a time: 245 products with
the Hessian of 200 images and 49,000 gradients of one image) is measured on a few calls and multiplied.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from deepneighbors.influence import FullNetworkInfluence, Inverse, LastLayerInfluence, fit_softmax
from deepneighbors.networks import ThinResNet

DAMPING, DECAY = 1e-3, 1e-9  # captum adds the damping to the Hessian of the summed loss, and knows no decay
HESSIAN_PRODUCTS, GRADIENTS, LISSA_BATCH = 245, 49_000, 200


def problem(train: int, queries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings with labels, of training images and of queries."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator)
    labels = torch.randint(10, (train + queries,), generator=generator)
    rows = (centres[labels] + 2.5 * torch.randn(train + queries, 64, generator=generator)).relu()
    return rows[:train], labels[:train], rows[train:], labels[train:]


def ours(layer: nn.Linear, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float, Tensor]:
    """Seconds to factorise, seconds for all scores of all queries, and the scores of 20 queries."""
    x, y, queries, labels = data
    model = LastLayerInfluence(layer.weight, layer.bias, weight_decay=DECAY, operator=Inverse(DAMPING))
    start = time.perf_counter()
    model.fit(x, y)
    middle = time.perf_counter()
    scores = model.scores(queries, labels)
    return middle - start, time.perf_counter() - middle, scores[:20]


def captum(layer: nn.Linear, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float, Tensor]:
    """The same by captum's NaiveInfluenceFunction, which forms the Hessian too."""
    from captum.influence._core.influence_function import NaiveInfluenceFunction

    x, y, queries, labels = data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.pt"
        torch.save(layer.state_dict(), path)
        start = time.perf_counter()
        model = NaiveInfluenceFunction(
            layer, TensorDataset(x, y), str(path), loss_fn=nn.CrossEntropyLoss(reduction="none"), batch_size=2000,
            projection_dim=layer.weight.numel() + layer.bias.numel(), hessian_reg=DAMPING * len(x), hessian_inverse_tol=0.0,
        )  # fmt: skip
        middle = time.perf_counter()
        scores = model.influence((queries, labels))
        return middle - start, time.perf_counter() - middle, scores[:20]


def released() -> float:
    """Seconds a query of the released procedure, from the time of its calls."""
    network = ThinResNet(statistics="batch").eval()
    model = FullNetworkInfluence(network, smoothing=0.1)
    x, y = torch.rand(LISSA_BATCH, 3, 32, 32), torch.randint(10, (LISSA_BATCH,))
    direction = torch.randn(1, sum(p.numel() for p in network.parameters()))
    model.hessian_products(direction, x, y)  # warm up
    start = time.perf_counter()
    for _ in range(2):
        model.hessian_products(direction, x, y)
    product = (time.perf_counter() - start) / 2
    start = time.perf_counter()
    for i in range(50):
        torch.autograd.grad(nn.functional.cross_entropy(network(x[i : i + 1]), y[i : i + 1]), list(network.parameters()))
    gradient = (time.perf_counter() - start) / 50
    print(f"released procedure: {product:.2f} s a Hessian product, {1000 * gradient:.1f} ms a gradient")
    return HESSIAN_PRODUCTS * product + GRADIENTS * gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=49_000)
    parser.add_argument("--queries", type=int, default=1_000)
    options = parser.parse_args()
    data = problem(options.train, options.queries)
    theta = fit_softmax(data[0], data[1], 10, weight_decay=1e-4).float()
    layer = nn.Linear(64, 10)
    layer.load_state_dict({"weight": theta[:, :-1], "bias": theta[:, -1]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted, asked, scores = ours(layer, data)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{options.queries} queries against {options.train} training images, last layer of 650 parameters")
    print(f"  this library     {fitted:8.2f} s to fit {asked:8.2f} s to ask   peak memory {before / 2**20:.2f}, then "
          f"{after / 2**20:.2f} GiB")  # fmt: skip
    try:
        peer_fitted, peer_asked, peer = captum(layer, data)
    except ImportError:
        print("  captum is not installed")
    else:
        ranks = min(spearmanr(a, b).statistic for a, b in zip(scores.numpy(), peer.detach().numpy(), strict=True))
        ratio = (peer_fitted + peer_asked) / (fitted + asked)
        print(f"  captum           {peer_fitted:8.2f} s to fit {peer_asked:8.2f} s to ask   {ratio:.1f} times ours, "
              f"least Spearman correlation {ranks:.4f}")  # fmt: skip
    query = released()
    print(f"  released         {query:8.0f} s a query, {query / ((fitted + asked) / options.queries):,.0f} times ours")


if __name__ == "__main__":
    main()
