"""What a run will do before it does it: tasks for a workflow engine, what is done, and what the rest will cost.

A *task* is a batch of nodes of one stage, for one attack and one detector, that one job computes. Tasks depend on each
other as their nodes do. Its name ends in a digest of the keys of its nodes: other code, settings or data make other tasks,
and a *receipt* below the store, a manifest of the task's artefacts, says that it is done.
"""

import ast
import hashlib
import heapq
import inspect
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deepneighbors import checks, paths
from deepneighbors._files import write_file
from deepneighbors._text import duration, text_table
from deepneighbors.costs import Costs, label, spent
from deepneighbors.errors import InputError
from deepneighbors.experiments import CHAPTERS, Run, recorded
from deepneighbors.store import Node, StageFunction

BATCH = 16  # nodes of a task: so many that starting Python costs little, so few that tasks keep many machines busy


@dataclass(frozen=True)
class Task:
    """A batch of nodes of one stage.

    Parameters
    ----------
    chapter, dataset, stage, attack, detector
        What it is for; attack and detector are empty where they do not apply or differ.
    nodes
        What it computes.
    needs
        Names of the tasks that must be done before.
    """

    chapter: str
    dataset: str
    stage: str
    attack: str
    detector: str
    nodes: tuple[Node, ...]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``chapter/dataset/stage/attack-detector-digest``."""
        digest = hashlib.sha256("".join(node.key for node in self.nodes).encode()).hexdigest()[:12]
        return f"{self.chapter}/{self.dataset}/{self.stage}/{self.attack or 'any'}-{self.detector or 'any'}-{digest}"

    @property
    def receipt(self) -> Path:
        """The file that says that the task is done."""
        return paths.artifacts() / "receipts" / f"{self.name}.json"


def nodes_of(run: Run, experiments: Iterable[str] | None = None) -> list[Node]:
    """All nodes of a run, upstream first, each key once; of all experiments by default."""
    known = CHAPTERS[run.chapter].experiments
    wanted = list(known if experiments is None else experiments)
    for name in wanted:
        checks.one_of("experiment", name, known)
    return list(run.store.walk(*(node for name in wanted for node in known[name].nodes(run.of(name)).values())))


def tasks(run: Run, experiments: Iterable[str] | None = None) -> list[Task]:
    """The tasks of a run, in an order in which they can be done.

    Nodes are put together, at most ``BATCH`` of them, when stage, attack, detector and depth, the longest way from a node
    without inputs, are the same: so no task needs another that needs it.
    """
    depth: dict[str, int] = {}
    groups: dict[tuple, list[Node]] = {}
    for node in nodes_of(run, experiments):
        depth[node.key] = 1 + max((depth[upstream.key] for upstream in node.inputs), default=-1)
        group = (depth[node.key], node.stage.name, *(label(node, name) for name in ("attack", "detector")))
        groups.setdefault(group, []).append(node)
    found: list[Task] = []
    maker: dict[str, str] = {}
    for (_, stage, attack, detector), nodes in sorted(groups.items(), key=lambda item: item[0]):
        for first in range(0, len(nodes), BATCH):
            part = tuple(nodes[first : first + BATCH])
            needs = sorted({maker[upstream.key] for node in part for upstream in node.inputs})
            task = Task(run.chapter, str(run.dataset), stage, attack, detector, part, tuple(needs))
            maker |= {node.key: task.name for node in part}
            found.append(task)
    return found


def compute(
    run: Run, name: str, experiments: Iterable[str] | None = None, *, receipt: str | os.PathLike | None = None
) -> Path:
    """Compute the nodes of a task of the plan of some experiments, and write its receipt, whose path is returned.

    Parameters
    ----------
    receipt
        Where to write it, in place of the task's own; an engine that moves files between machines needs that.

    Raises
    ------
    InputError
        No task has this name at the run's settings: the plan is of other settings or of other code.
    """
    task = next((task for task in tasks(run, experiments) if task.name == name), None)
    if task is None:
        raise InputError(
            f"task is {name!r}, which is not in the plan of these settings and this code; print it with "
            "`deepneighbors plan --json`"
        )
    made = {node.key: run.store.get(node, run.context).manifest for node in task.nodes}
    place = Path(receipt) if receipt else task.receipt
    write_file(place, json.dumps({"task": name, "artifacts": made}, indent=1, sort_keys=True).encode())
    return place


@dataclass(frozen=True)
class StageCost:
    """What is done of a stage in a run, and what the rest costs.

    Parameters
    ----------
    done, missing, damaged
        Counts of its nodes.
    seconds
        Mean of a node, of those that are done and of estimates for the others; None when no run has measured the stage.
    left
        Seconds that its missing and damaged nodes will take one after the other; None when unknown.
    source
        Where estimates, or with none the times, are from: ``this store`` (done nodes of this plan), ``recorded`` (results
        of the full profile, perhaps at other settings), or nothing.
    """

    dataset: str
    stage: str
    done: int
    missing: int
    damaged: int
    seconds: float | None
    left: float | None
    source: str


def stage_costs(run: Run, experiments: Iterable[str] | None = None) -> list[StageCost]:
    """Every stage of a run, in the order of work."""
    stages: dict[str, list[Node]] = {}
    for node in nodes_of(run, experiments):
        stages.setdefault(node.stage.name, []).append(node)
    before = recorded_costs(run)
    return [_stage_cost(run, stage, nodes, before) for stage, nodes in stages.items()]


def _stage_cost(run: Run, stage: str, nodes: Sequence[Node], before: Costs) -> StageCost:
    states = {node: run.store.state(node) for node in nodes}
    taken = {node: run.store.seconds(node) for node, state in states.items() if state == "done"}
    done, missing, damaged = (sum(state == wanted for state in states.values()) for wanted in ("done", "missing", "damaged"))
    known, source = (Costs([spent(taken.items())]), "this store") if taken else (before, "recorded")
    rest = [seconds for node in nodes if node not in taken and (seconds := known.seconds(node)) is not None]
    if len(rest) < missing + damaged:  # a stage that was never measured
        return StageCost(str(run.dataset), stage, done, missing, damaged, None, None, "")
    seconds = (sum(taken.values()) + sum(rest)) / len(nodes)
    return StageCost(str(run.dataset), stage, done, missing, damaged, seconds, sum(rest), source)


def recorded_states(run: Run) -> dict[str, str]:
    """For each experiment whether the repository has its full result: ``recorded`` or ``not run``.

    A result at ``other settings`` than the full profile's, for instance of fewer images, or of ``older code`` than the
    present is recorded too; the book says so beside its numbers. Settings that it does not know, because they are newer, do
    not count.
    """
    found = {}
    for name, experiment in CHAPTERS[run.chapter].experiments.items():
        result = recorded(run.chapter, name, dataset=run.dataset)
        if result is None:
            found[name] = "not run"
        elif result.provenance["code_fingerprint"] != experiment.code(run.of(name)):
            found[name] = "older code"
        else:
            before, planned = result.provenance["config"], json.loads(json.dumps(asdict(run.of(name).settings)))
            same = all(before[setting] == value for setting, value in planned.items() if setting in before)
            found[name] = "recorded" if same else "other settings"
    return found


def recorded_costs(run: Run) -> Costs:
    """Costs of each stage: kept with the recorded results of the run's data set, else of the chapter's others, else of few
    images.

    None below ``full``.
    """
    if run.profile != "full":
        return Costs(())
    return Costs.recorded(paths.recorded() / run.folder, paths.recorded() / run.chapter, paths.costs() / run.chapter)


def makespan(tasks: Sequence[Task], seconds: Callable[[Task], float], workers: int) -> float:
    """Seconds until so many equal workers have done all tasks, each taking the first in order that is ready.

    List scheduling: at most ``2 - 1 / workers`` times the shortest possible time (Graham 1966).

    Parameters
    ----------
    tasks
        In an order in which they can be done, as :func:`tasks` gives them.
    seconds
        Time of a task.
    """
    checks.whole("workers", workers, 1)
    needed_by: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        for need in task.needs:
            needed_by.setdefault(need, []).append(place)
    waiting = [len(task.needs) for task in tasks]
    ready = [place for place, count in enumerate(waiting) if not count]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            place = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds(tasks[place]), place))
        now, done = heapq.heappop(running)
        for place in needed_by.get(tasks[done].name, ()):
            waiting[place] -= 1
            if not waiting[place]:
                heapq.heappush(ready, place)
    return now


def as_json(task: Task) -> dict[str, Any]:
    """A task as plain values, for a workflow engine; ``device`` tells whether a GPU would serve it."""
    named = {name: getattr(task, name) for name in ("name", "chapter", "dataset", "stage", "attack", "detector", "needs")}
    function = task.nodes[0].stage.function
    return named | {
        "receipt": str(task.receipt), "keys": [node.key for node in task.nodes], "device": uses_device(function)
    }  # fmt: skip


@cache
def uses_device(function: StageFunction) -> bool:
    """Whether a stage looks at its context, in which the device is all that may matter to a scheduler."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(part, ast.Name) and part.id == "context" for part in ast.walk(tree))


def report(runs: Sequence[Run], experiments: Sequence[str] | None = None) -> str:
    """Stages of some runs as text, and at the full profile what of their results is recorded."""
    rows: list[tuple[str, ...]] = [("stage", "nodes", "done", "missing", "damaged", "one takes", "the rest", "measured in")]
    left: list[float | None] = []
    for run in runs:
        for cost in stage_costs(run, experiments):
            counts = (cost.done + cost.missing + cost.damaged, cost.done, cost.missing, cost.damaged)
            name = f"{run.chapter}/{cost.dataset}/{cost.stage}"
            rows.append((name, *map(str, counts), duration(cost.seconds), duration(cost.left), cost.source or "-"))
            left.append(cost.left)
    known, unknown = [seconds for seconds in left if seconds is not None], left.count(None)
    total = f"The rest takes {duration(sum(known))} one stage after the other." if known else ""
    if unknown:
        total += f" The cost of {unknown} kinds of stages is not known: none was run here or recorded."
    parts = [text_table(rows), total.strip()]
    if runs[0].profile == "full":
        states = [
            (f"{run.chapter}/{run.dataset}/{name}", state)
            for run in runs
            for name, state in recorded_states(run).items()
            if not experiments or name in experiments
        ]
        parts.append(text_table([("experiment", "in results/full"), *states]))
    return "\n\n".join(parts)
