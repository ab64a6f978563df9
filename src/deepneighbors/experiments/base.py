"""What an experiment is: nodes of the store, and a summary of their artefacts as a tidy table with arrays."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepneighbors import checks, costs, data, device, paths, profiles
from deepneighbors.fingerprint import fingerprint
from deepneighbors.provenance import git_state, provenance
from deepneighbors.results import Result
from deepneighbors.store import Artifact, Context, Node, Store

log = logging.getLogger(__name__)

# What turns artefacts into rows, besides a summary and what it names in its own module.
_ROWS = ("deepneighbors.results", "deepneighbors.intervals")

Nodes = Mapping[str, Node]
Summary = tuple[pd.DataFrame, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Run:
    """One request: a chapter at a profile, checked when it is made.

    Parameters
    ----------
    dataset
        One of the chapter's; the profile's own when None.
    n
        Images for each attack, in place of the profile's numbers.
    changes
        Other settings in place of the profile's, each as text: see :func:`deepneighbors.profiles.changed`.
    experiment
        The one that is asked for, as :meth:`of` sets it: a profile may have settings for it.
    workers
        Processes that share the work, and so the time of each stage: see :mod:`deepneighbors.parallel`.
    """

    chapter: str
    profile: str = "quick"
    seed: int = 0
    device: str = "auto"
    n: int | None = None
    dataset: str | None = None
    changes: tuple[str, ...] = ()
    experiment: str = ""
    workers: int = 1

    def __post_init__(self) -> None:
        checks.one_of("chapter", self.chapter, profiles.SETTINGS)
        checks.one_of("profile", self.profile, profiles.PROFILES)
        settings = profiles.SETTINGS[self.chapter][self.profile]
        checks.one_of("dataset", self.dataset or settings.dataset, settings.datasets)
        object.__setattr__(self, "dataset", self.dataset or settings.dataset)
        checks.whole("seed", self.seed, 0)
        object.__setattr__(self, "device", device.resolve(self.device))
        if self.n is not None:
            checks.whole("n", self.n, 1)
        checks.whole("workers", self.workers, 1)
        profiles.changed(settings, self.changes)

    @cached_property
    def settings(self) -> Any:
        """The profile's settings of the chapter and experiment; then ``dataset``, ``n`` and ``changes`` in this order."""
        own = profiles.EXPERIMENTS.get(self.chapter, {}).get(self.profile, {}).get(self.experiment, {})
        settings = replace(profiles.SETTINGS[self.chapter][self.profile], **own, dataset=self.dataset)
        settings = settings if self.n is None else settings.with_images(self.n)
        return profiles.changed(settings, self.changes)

    def of(self, experiment: str) -> "Run":
        """The same for one experiment, with the settings that its profile has for it."""
        return replace(self, experiment=experiment)

    @cached_property
    def store(self) -> Store:
        """The store of artefacts."""
        return Store(paths.artifacts())

    @property
    def folder(self) -> Path:
        """Where results of the chapter lie below those of a profile: a folder for each data set where there are several."""
        several = len(profiles.SETTINGS[self.chapter][self.profile].datasets) > 1
        return Path(self.chapter, str(self.dataset)) if several else Path(self.chapter)

    @property
    def context(self) -> Context:
        """Where the stages run."""
        return Context(device=self.device)


@dataclass(frozen=True)
class Experiment:
    """A unit that makes one result.

    Parameters
    ----------
    nodes
        The stages that it needs, by name; making them computes nothing.
    summarise
        From the run and the artefacts, by the same names, to a tidy table and the arrays of its figures.
    uses
        Modules that the summary calls, besides its own.
    """

    name: str
    nodes: Callable[[Run], Nodes]
    summarise: Callable[[Run, Mapping[str, Artifact]], Summary]
    uses: tuple[str, ...] = ()

    def code(self, run: Run) -> str:
        """Fingerprint of the code that the result depends on: its stages, upstream ones too, and its summary."""
        stages = {node.stage.name: node.stage.fingerprint for node in run.store.walk(*self.nodes(run).values())}
        own = fingerprint((*_ROWS, *self.uses), self.summarise)
        return hashlib.sha256("/".join([own, *(f"{k}:{v}" for k, v in sorted(stages.items()))]).encode()).hexdigest()


@dataclass(frozen=True)
class Chapter:
    """A notebook's experiments, in the order of its pages."""

    name: str
    title: str
    experiments: dict[str, Experiment] = field(default_factory=dict)


def compute(run: Run, chapter: Chapter, name: str) -> Result:
    """Run what is missing, summarise, and save the result; the full profile also records it for the repository."""
    checks.one_of("experiment", name, chapter.experiments)
    experiment, run = chapter.experiments[name], run.of(name)
    start = time.perf_counter()
    nodes = experiment.nodes(run)
    # First, and with the code every key: the source may be edited while a long run goes on.
    code, commit = experiment.code(run), git_state()
    artifacts = {key: run.store.get(node, run.context) for key, node in nodes.items()}
    table, arrays = experiment.summarise(run, artifacts)
    images = data.load(run.settings.dataset)
    stages = {node: run.store.get(node).manifest for node in run.store.walk(*nodes.values())}
    origin = provenance(
        config={"profile": run.profile, "seed": run.seed, **asdict(run.settings)},
        code_fingerprint=code,
        data_fingerprint=_fingerprint_of_data(str(run.settings.dataset)),
        seconds=time.perf_counter() - start,
    )
    origin |= commit
    origin["data_images"] = [len(images.x_train), len(images.x_test)]
    origin["stages"] = costs.spent((node, manifest["seconds"]) for node, manifest in stages.items())
    origin["stage_seconds"] = round(sum(manifest["seconds"] for manifest in stages.values()), 1)
    origin["workers"] = run.workers
    origin["devices"] = sorted({manifest["device"] for manifest in stages.values()})
    result = Result(name, table, arrays, origin)
    result.save(paths.artifacts() / "results" / run.profile / run.folder)
    if run.profile == "full":
        record(result, paths.recorded() / run.folder, seed=run.seed)
    return result


@cache
def _fingerprint_of_data(dataset: str) -> str:
    return data.load(dataset).fingerprint


def record(result: Result, folder: Path, *, seed: int) -> bool:
    """Keep a result of the full profile for the repository, unless that would replace one on clearly more images.

    Only seed 0 is recorded. Returns whether the result was kept.
    """
    if seed != 0:
        log.info("%s has seed %d and is not recorded; only seed 0 is", result.name, seed)
        return False
    if (folder / f"{result.name}.json").is_file():
        before, now = (int(known.table["n"].sum()) for known in (Result.load(folder, result.name), result))
        # Rows over successes have a few images more or less from one network to the next; a smaller run has far fewer.
        if now < 0.9 * before:
            log.warning(
                "%s is not recorded: the recorded result rests on more images (%d, now %d)", result.name, before, now
            )
            return False
    result.save(folder)
    return True
