"""The page on the cost of growth: how time and memory grow with the training set, and a run on many GPUs on paper."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deepneighbors import paths, plan
from deepneighbors._text import duration
from deepneighbors.experiments import Run
from deepneighbors.report.figures import Canvas
from deepneighbors.report.tables import NOT_RUN, NOTHING
from deepneighbors.results import Result

METHODS = {
    "exact_search": "exact search", "inverted_lists": "inverted lists", "dknn_credibility": "DkNN credibility",
    "nnif_features": "NNIF, one layer",
}  # fmt: skip
_MARKERS = dict(zip(METHODS, "osD^", strict=True))
_LEAST = 0.05  # GiB from which growth of memory can be told from what a process holds anyway


def curves(table: pd.DataFrame, metric: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training points and values of each method, by method; those that were measured."""
    found = {}
    for method in METHODS:
        rows = table[(table["detector"] == method) & (table["metric"] == metric)]
        if len(rows):
            points = rows["setting"].str.removeprefix("points=").astype(int).to_numpy()
            order = np.argsort(points)
            found[method] = points[order], rows["value"].to_numpy()[order]
    return found


def slope(points: np.ndarray, values: np.ndarray, least: int = 10_000) -> float:
    """Exponent of growth: the slope of a line through the logarithms, from ``least`` points on; NaN of fewer than two."""
    kept = (points >= least) & (values > 0)
    return float(np.polyfit(np.log(points[kept]), np.log(values[kept]), 1)[0]) if kept.sum() > 1 else float("nan")


def growth(canvas: Canvas, table: pd.DataFrame) -> None:
    """Seconds a query and memory against training points, both axes logarithmic."""
    figure, axes = canvas(1, 2, size=(7, 3.4))
    for axis, metric, label in zip(
        axes, ("seconds_per_query", "memory_gib"), ("seconds a query", "memory, GiB"), strict=True
    ):
        for method, (points, values) in curves(table, metric).items():
            kept = values > (_LEAST if metric == "memory_gib" else 0)
            axis.loglog(points[kept], values[kept], marker=_MARKERS[method], label=METHODS[method])
        axis.set(xlabel="training points", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS), fontsize=9)


def summary(table: pd.DataFrame, memory_gib: float = 24.0) -> pd.DataFrame:
    """For each method: the largest size that was run, its costs, the slopes, and where a machine's memory ends."""
    rows = []
    times, held = curves(table, "seconds_per_query"), curves(table, "memory_gib")
    fits, recalls = curves(table, "fit_seconds"), curves(table, "recall")
    for method, (points, values) in times.items():
        largest, memory = int(points[-1]), held[method][1][-1]
        end = f"{memory_gib / memory * largest:.1e}" if memory > _LEAST else NOTHING
        recall = f"{recalls[method][1][-1]:.3f}" if method in recalls else NOTHING
        rows.append((METHODS[method], f"{largest:,}", duration(fits[method][1][-1]), _short(values[-1]), recall,
                     f"{slope(points, values):.2f}", f"{memory:.1f} GiB", end))  # fmt: skip
    columns = [
        "Method",
        "Largest size",
        "Preparation",
        "A query",
        "Recall",
        "Slope of time",
        "Memory",
        f"{memory_gib:g} GiB end at",
    ]
    return pd.DataFrame(rows, columns=columns)


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def on_machines(runs: Sequence[Run], workers: tuple[int, ...] = (1, 4, 16, 64)) -> pd.DataFrame:
    """How long all tasks of some runs take on so many equal machines, from the recorded costs of their stages."""
    tasks, seconds = list[plan.Task](), dict[str, float]()
    columns = ["Machines", "Wall time", "Speed-up", "Busy"]
    for run in runs:
        costs = plan.recorded_costs(run)
        for task in plan.tasks(run):
            spent = [cost for node in task.nodes if (cost := costs.seconds(node)) is not None]
            if len(spent) < len(task.nodes):
                return pd.DataFrame([(NOT_RUN, f"no cost of {task.stage}", NOTHING, NOTHING)], columns=columns)
            seconds[task.name] = sum(spent)
            tasks.append(task)
    rows = []
    for count in workers:
        taken = plan.makespan(tasks, lambda task: seconds[task.name], count)
        speed_up = sum(seconds.values()) / taken
        rows.append((str(count), duration(taken), f"{speed_up:.1f}", f"{100 * speed_up / count:.0f} %"))
    return pd.DataFrame(rows, columns=columns)


def load() -> Result:
    """The measurement in the repository."""
    return Result.load(paths.ROOT / "results" / "growth", "growth")


def machine(result: Result) -> str:
    """The machine of a measurement, for a caption."""
    hardware = result.provenance["hardware"]
    return f"{hardware['cores']} cores, {hardware['memory_gb']:.0f} GB"
