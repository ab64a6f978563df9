"""Time and memory against the number of training points, for exact and approximate search, Deep kNN and NNIF.

    python benchmarks/growth.py [--largest 10000000] [--memory 16] [--out results/growth]

Each size of each method runs in a process of its own, so that its peak memory is its own too. A query's time is the least of
up to three runs of all queries. Points are activations of MNIST's training digits in the report's network (relu3, 128
numbers); beyond 60,000 they are made up: mixtures of two digits of one class with a little noise. Deep kNN takes such
mixtures of images through the whole network. A size whose data would not fit into ``--memory`` GiB is left out. The result
is a tidy one, which the page on the cost of growth shows; it is saved after each size, and a size that it has from the same
code is not measured again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from deepneighbors import data
from deepneighbors.detectors.ranks import ranks_and_distances
from deepneighbors.dknn import DeepKNN
from deepneighbors.fingerprint import fingerprint
from deepneighbors.influence import LastLayerInfluence
from deepneighbors.neighbors import NearestNeighbors
from deepneighbors.networks import MnistCNN, activations
from deepneighbors.provenance import provenance
from deepneighbors.results import Result, statistic_row, table
from deepneighbors.training import fit_classifier

SIZES = (1_000, 10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
REPEATED = 10.0  # seconds after which a measurement is not repeated
USES = ("deepneighbors.neighbors", "deepneighbors.dknn", "deepneighbors.influence", "deepneighbors.detectors.ranks")
QUERIES, K, M = 100, 75, 50
WIDTH, EMBEDDING = 128, 64
NETWORK_WIDTH = 64 * 14 * 14 + 128 * 5 * 5 + 128 + 10  # numbers a point in the four layers


def mixtures(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows of ``x`` and, beyond them, mixtures of two of one class: ``count`` in all, with labels."""
    generator = torch.Generator().manual_seed(0)
    made, labels = torch.empty(count, *x.shape[1:]), torch.empty(count, dtype=torch.int64)
    real = min(count, len(x))
    made[:real], labels[:real] = x[:real], y[:real]
    order = torch.argsort(y, stable=True)
    ends = torch.bincount(y).cumsum(0)
    starts = ends - torch.bincount(y)
    for start in range(real, count, 100_000):
        size = min(100_000, count - start)
        digit = torch.randint(len(ends), (size,), generator=generator)
        span = (ends - starts)[digit]
        one, two = (order[starts[digit] + (torch.rand(size, generator=generator) * span).long()] for _ in range(2))
        share = torch.rand(size, *[1] * (x.ndim - 1), generator=generator)
        part = made[start : start + size]
        torch.lerp(x[one], x[two], share, out=part)
        part.add_(torch.randn(part.shape, generator=generator), alpha=0.01).clamp_(min=0)
        labels[start : start + size] = digit
    return made, labels


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Wall seconds and the answer."""
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def least(work: Callable[[], object], *, times: int = 3) -> tuple[float, object]:
    """The least wall seconds of a few runs, of one where that is long, and the answer."""
    seconds, answer = timed(work)
    for _ in range(times - 1):
        if seconds < REPEATED:
            seconds = min(seconds, timed(work)[0])
    return seconds, answer


def search(known: dict[str, Tensor], count: int, *, approximate: bool) -> dict[str, float]:
    """Nearest neighbours of test digits, exact or by inverted lists; for these their recall too."""
    database, _ = mixtures(known["x"], known["y"], count)
    queries = known["queries"]
    options = {"lists": min(4096, max(16, int(count**0.5))), "probes": 16} if approximate else {}
    index = NearestNeighbors(backend="faiss_ivf" if approximate else "torch", **options)
    fit, _ = timed(lambda: index.fit(database))
    spent, found = least(lambda: index.kneighbors(queries, K))
    measured = {"fit_seconds": fit, "seconds_per_query": spent / QUERIES, "peak_gib": peak_gib()}
    if approximate:
        exact = NearestNeighbors().fit(database).kneighbors(queries, K)
        hits = (found.indices[:, :, None] == exact.indices[:, None]).any(2)
        measured["recall"] = float(hits.float().mean())
    return measured


def credibility(known: dict[str, Tensor], count: int) -> dict[str, float]:
    """Credibility of test digits by Deep kNN on all four layers."""
    digits = data.load("mnist")
    x, y = mixtures(digits.x_train, digits.y_train, count)
    classifier = DeepKNN(network_of(known), MnistCNN.layers, k=K)
    fit, _ = timed(lambda: classifier.fit(x.clamp(0, 1), y))
    classifier.calibrate(digits.x_test[QUERIES : 2 * QUERIES], digits.y_test[QUERIES : 2 * QUERIES])
    spent, _ = least(lambda: classifier.evaluate(digits.x_test[:QUERIES]))
    return {"fit_seconds": fit, "seconds_per_query": spent / QUERIES, "peak_gib": peak_gib()}


def detection(known: dict[str, Tensor], count: int) -> dict[str, float]:
    """Features of NNIF in one layer of 64 numbers: the most helpful and harmful points, their ranks and distances."""
    x, y = mixtures(known["x"][:, :EMBEDDING], known["y"], count)
    layer = known["fc.weight"][:, :EMBEDDING], known["fc.bias"]
    influence = LastLayerInfluence(*layer)
    fit, _ = timed(lambda: influence.fit(x, y))
    queries = known["queries"][:, :EMBEDDING]
    labels = (queries @ layer[0].T + layer[1]).argmax(1)

    def features() -> Tensor:
        chosen = torch.cat(influence.extremes(queries, labels, M), 1)
        return ranks_and_distances(queries, x, chosen)[0]

    spent, _ = least(features)
    return {"fit_seconds": fit, "seconds_per_query": spent / QUERIES, "peak_gib": peak_gib()}


# What a point takes in memory, in bytes: data, and what the method keeps beside it.
METHODS: dict[str, tuple[Callable[[dict[str, Tensor], int], dict[str, float]], int]] = {
    "exact_search": (lambda known, count: search(known, count, approximate=False), 4 * WIDTH + 8),
    "inverted_lists": (lambda known, count: search(known, count, approximate=True), 3 * 4 * WIDTH),
    "dknn_credibility": (credibility, 4 * (2 * 784 + 2 * NETWORK_WIDTH)),
    "nnif_features": (detection, (4 + 8 + 8) * EMBEDDING + 4 * 8 * QUERIES // 10),
}


def network_of(known: dict[str, Tensor]) -> MnistCNN:
    """The network whose weights the parent process saved."""
    network = MnistCNN(conv2_padding=0)
    network.load_state_dict({name: known[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)


def prepared() -> dict[str, Tensor]:
    """A network that knows digits, and its activations of all training digits and of some test digits."""
    digits = data.load("mnist")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MnistCNN(conv2_padding=0)
    fit_classifier(network, digits.x_train[:20_000], digits.y_train[:20_000], epochs=1, learning_rate=2e-3, one_cycle=True)
    with torch.no_grad():
        x, queries = (
            torch.cat([activations(network, part, ["relu3"])["relu3"].flatten(1) for part in images.split(1000)])
            for images in (digits.x_train, digits.x_test[:QUERIES])
        )
    return {"x": x, "y": digits.y_train, "queries": queries, **network.state_dict()}


def measure(method: str, count: int, path: str) -> None:
    """One size of one method, as JSON on standard output."""
    known, before = torch.load(path), peak_gib()
    measured = METHODS[method][0](known, count)
    print(json.dumps(measured | {"memory_gib": measured["peak_gib"] - before}))


def peak_gib() -> float:
    """The most memory that this process has held so far.

    By Linux's count of this address space: what ``getrusage`` gives begins at the size of the parent process.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    """Measure all sizes of all methods, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="most training points")
    parser.add_argument("--memory", type=float, default=16.0, help="GiB that the data of a size may take")
    parser.add_argument("--out", type=Path, default=Path("results/growth"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        measure(chosen.one[0], int(chosen.one[1]), chosen.one[2])
        return
    start, config = time.perf_counter(), {"queries": QUERIES, "k": K, "m": M, "threads": torch.get_num_threads()}
    kept = rows_of(chosen.out, config)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "known.pt")
        torch.save(prepared(), path)
        for method, (_, size) in METHODS.items():
            for count in (count for count in SIZES if count <= chosen.largest and count * size <= chosen.memory * 2**30):
                names = {"experiment": "growth", "detector": method, "setting": f"points={count}"}
                if any(row["detector"] == method and row["setting"] == names["setting"] for row in kept):
                    continue
                command = [sys.executable, __file__, "--one", method, str(count), path]
                measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                print(f"{method:<18}{count:>12,}  " + "  ".join(f"{k} {v:.3g}" for k, v in measured.items()), flush=True)
                kept += [statistic_row(value, n=QUERIES, metric=name, **names) for name, value in measured.items()]
                save(kept, config, chosen.out, seconds=time.perf_counter() - start)


def rows_of(folder: Path, config: dict) -> list[dict]:
    """Rows of an earlier measurement of the same code with the same settings, here or in another process."""
    if not (folder / "growth.json").is_file():
        return []
    before = Result.load(folder, "growth")
    same = before.provenance["code_fingerprint"] == fingerprint(USES) and before.provenance["config"] == config
    return before.table.to_dict("records") if same else []


def save(rows: list[dict], config: dict, folder: Path, *, seconds: float) -> None:
    """Write the tidy result."""
    digits = data.load("mnist").fingerprint
    origin = provenance(config=config, code_fingerprint=fingerprint(USES), data_fingerprint=digits, seconds=seconds)
    Result("growth", table(rows), {}, origin).save(folder)


if __name__ == "__main__":
    main()
