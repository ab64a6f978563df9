"""What a notebook of the book needs: checked parameters, results through the store, tables and figures.

Each result that a notebook shows leaves a record among its outputs, invisible to readers. The gate of the
book (:mod:`deepneighbors.report.gate`) compares the records with the code as it is then.
"""

import logging
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import display

from deepneighbors import experiments, paths, profiles
from deepneighbors._logs import log_to
from deepneighbors.errors import InputError
from deepneighbors.paper import values
from deepneighbors.report import comparison, figures, tables
from deepneighbors.results import Result

MIME = "application/vnd.deepneighbors.result+json"
_GLUE = "application/papermill.record/"  # what myst_nb.glue writes; written here so that Colab needs no Sphinx
_IPYTHON = {"In", "Out", "exit", "quit", "open", "get_ipython"}
_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)


@dataclass(frozen=True)
class NotRun:
    """Stands for a result that does not exist; tables show it as *not run*, and it counts as false."""

    name: str

    def __bool__(self) -> bool:
        return False


def start(
    chapter: str, namespace: Mapping[str, Any], *, parameters: Sequence[str] = ("profile", "seed", "device")
) -> "Chapter":
    """Check the notebook's parameters and open its chapter.

    Parameters
    ----------
    chapter
        Name in ``experiments.CHAPTERS``.
    namespace
        The notebook's ``globals()``, taken right after the cell of parameters.
    parameters
        Names that the notebook takes: ``profile``, ``seed``, ``device``, and ``n``, ``dataset`` or ``recompute``
        where it has them. An empty ``dataset`` stands for the profile's.

    Raises
    ------
    InputError
        A parameter that the notebook does not take, or a value that is not allowed.
    """
    given = read_parameters(namespace, parameters)
    _log_to_file(chapter)
    recompute = given.pop("recompute", False)
    if not isinstance(recompute, bool):
        raise InputError(f"recompute is {recompute!r}; allowed are True and False")
    given["dataset"] = given.get("dataset") or None
    return Chapter(experiments.Run(chapter=chapter, **given), recompute=recompute)


def start_page(namespace: Mapping[str, Any], *, parameters: Sequence[str] = ("profile",)) -> tuple["Page", dict[str, Any]]:
    """As :func:`start` for a notebook that runs no experiment: the page and its parameters."""
    given = read_parameters(namespace, parameters)
    if given.get("profile", "quick") not in profiles.PROFILES:
        raise InputError(f"profile is {given['profile']!r}; allowed are {', '.join(profiles.PROFILES)}")
    return Page(), given


def read_parameters(namespace: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """Values of the parameters in a notebook's namespace; refuses names that the notebook does not take.

    Papermill only warns of an unknown parameter and defines it all the same, so it is found here as a plain
    value that neither IPython nor the notebook defines.
    """
    missing = [name for name in parameters if name not in namespace]
    if missing:
        raise InputError(f"the notebook defines no parameter {missing[0]!r}; it must define {', '.join(parameters)}")
    unknown = sorted(name for name, value in namespace.items() if _is_injected(name, value, parameters))
    again = any(isinstance(value, Page) for value in namespace.values())  # by hand, with later cells' variables
    if unknown and not again:
        raise InputError(f"unknown parameter {unknown[0]!r}; this notebook takes {', '.join(parameters)}")
    return {name: namespace[name] for name in parameters}


class Page:
    """Shows tables, figures and values in a notebook."""

    def grid(self, frame: pd.DataFrame, *, caption: str, name: str, **options: Any) -> None:
        """Show a data frame as a numbered table; see :func:`deepneighbors.report.tables.grid`."""
        display(tables.grid(frame, caption=caption, name=name, **options))

    def figure(
        self,
        draw: Callable[[figures.Canvas], object],
        *,
        name: str,
        caption: str,
        alt: str,
        needs: Sequence[Result | NotRun] = (),
    ) -> None:
        """Draw a figure in a light and a dark style; *not run* in its place while a result is missing.

        ``draw`` is called twice with a :class:`~deepneighbors.report.figures.Canvas`.
        """
        absent = [result.name for result in needs if not result]
        if absent:
            text = f"Not run: this figure needs the results of {', '.join(absent)}."
            display({"text/markdown": f"*{text}*", "text/plain": text}, raw=True)
            return
        display(figures.picture(draw, name=name, caption=caption, alt=alt))

    def glue(self, name: str, value: str | float) -> None:
        """Keep a number or a string under a name, for ``{glue:text}`` in the page's prose."""
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, str | int | float):
            raise InputError(f"glue {name!r} is a {type(value).__name__}; allowed are numbers and strings")
        metadata = {"scrapbook": {"name": name, "mime_prefix": _GLUE}}
        display({f"{_GLUE}text/plain": repr(value)}, raw=True, metadata=metadata)


class Chapter(Page):
    """A chapter at one profile: its results, and tables that set them beside the paper's."""

    def __init__(self, run: experiments.Run, *, recompute: bool = False) -> None:
        self.run = run
        self.recompute = recompute
        self._recorded: dict[tuple[str, str | None], Result | None] = {}  # what was read: a page asks often

    def result(self, name: str) -> Result | NotRun:
        """The result of one experiment at the notebook's profile.

        ``smoke`` and ``quick`` compute what the store does not have. ``full`` takes the recorded result; it
        computes only on a CUDA device or when the notebook's ``recompute`` is true, and is *not run*
        otherwise.
        """
        if name not in experiments.CHAPTERS[self.run.chapter].experiments:
            known = ", ".join(experiments.CHAPTERS[self.run.chapter].experiments)
            raise InputError(f"chapter {self.run.chapter!r} has no experiment {name!r}; it has {known}")
        if self.run.profile == "full" and not self._may_compute_full():
            found = self.recorded(name, self.run.dataset)
        else:
            found = experiments.compute(self.run, name)
            if self.run.profile == "full":
                self._recorded.clear()  # it is recorded anew
            self._record(found, self.run.profile, recorded=False)
        return found

    def recorded(self, name: str, dataset: str | None = None) -> Result | NotRun:
        """The recorded result of the full profile; of its own data set unless another is named."""
        dataset = dataset or profiles.SETTINGS[self.run.chapter]["full"].dataset
        if (name, dataset) not in self._recorded:
            self._recorded[name, dataset] = experiments.recorded(self.run.chapter, name, profile="full", dataset=dataset)
        found = self._recorded[name, dataset]
        if found is None:
            return NotRun(name)
        self._record(found, "full", recorded=True)
        return found

    def shown(self, name: str) -> Result | NotRun:
        """The recorded result of the full profile where there is one, else this run's: what figures are drawn from."""
        return self.recorded(name) or self.result(name)

    @staticmethod
    def source(*results: Result | NotRun) -> str:
        """Which profile results come from, for a caption."""
        profiles_ = sorted({result.provenance["config"]["profile"] for result in results if isinstance(result, Result)})
        return " and ".join(f"{profile} profile" for profile in profiles_)

    def value(self, result: Result, *, metric: str, **names: str) -> float:
        """One number of a result, for prose and figures."""
        return float(comparison.select(result.table, metric=metric, **names)["value"])

    def compare(
        self,
        results: Result | NotRun | Sequence[Result | NotRun],
        *,
        rows: Sequence[comparison.Row],
        caption: str,
        name: str,
        paper: str = "sitawarin2019",
        headings: Sequence[str] = ("",),
        partial: bool = False,
    ) -> None:
        """Show paper | full | this run | difference, one line for each of ``rows`` (:func:`comparison.row`).

        A row belongs to the first of ``results`` unless it says ``experiment=``. Its full result is the recorded one of the
        data set that it names, by default MNIST. ``partial``: results may lack some rows, which are then *not run*.
        """
        given = [results] if isinstance(results, Result | NotRun) else list(results)
        rows = [_with_experiment(entry, given[0].name) for entry in rows]
        datasets = dict.fromkeys(entry.names["dataset"] for entry in rows)
        full = [self.recorded(result.name, dataset) for result in given for dataset in datasets]
        old = _joined(found for found in full if self.outdated(found, "full"))
        outdated = frozenset() if old is None else frozenset(old["experiment"])
        display(
            comparison.compare(
                rows,
                full=_joined(full),
                this=_joined(given),
                lookup=lambda **names: values.lookup(paper=paper, **names),
                caption=caption,
                name=name,
                headings=headings,
                profile=self.run.profile,
                outdated=outdated,
                partial=partial,
            )
        )

    def outdated(self, result: Result | NotRun, profile: str) -> bool:
        """Whether a result was recorded by an earlier version of the code."""
        return isinstance(result, Result) and fingerprint_of(result) != current_fingerprint(
            self.run.chapter, result.name, profile
        )

    def _may_compute_full(self) -> bool:
        return self.recompute or str(self.run.context.device).startswith("cuda")

    def _record(self, result: Result, profile: str, *, recorded: bool) -> None:
        record = {
            "chapter": self.run.chapter,
            "experiment": result.name,
            "profile": profile,
            "dataset": str(result.table["dataset"].iloc[0]),
            "recorded": recorded,
            "fingerprint": fingerprint_of(result),
        }
        if recorded:
            record["outdated"] = self.outdated(result, profile)
        display({MIME: record, "text/html": ""}, raw=True)


def fingerprint_of(result: Result) -> str:
    """Fingerprint of the code that computed a result, from its provenance."""
    return str(result.provenance["code_fingerprint"])


@cache
def current_fingerprint(chapter: str, experiment: str, profile: str) -> str:
    """Fingerprint that the present code would give to a result."""
    return experiments.code_fingerprint(chapter, experiment, profile=profile)


def _is_injected(name: str, value: object, parameters: Sequence[str]) -> bool:
    known = name.startswith("_") or name in _IPYTHON or name in parameters
    return not known and not isinstance(value, types.ModuleType) and isinstance(value, _PLAIN)


def _with_experiment(entry: comparison.Row, experiment: str) -> comparison.Row:
    names = {"experiment": experiment, "dataset": "mnist", **entry.names}
    return comparison.Row(entry.label, entry.metric, names, entry.paper, entry.kind)


def _joined(results: Any) -> pd.DataFrame | None:
    found = [result.table for result in results if result]
    return pd.concat(found, ignore_index=True) if found else None


def _log_to_file(name: str) -> None:
    """Send the library's log to ``artifacts/logs/<name>.log`` or ``$DEEPNEIGHBORS_LOG``, not to the page."""
    path = os.environ.get("DEEPNEIGHBORS_LOG") or paths.artifacts() / "logs" / f"{name}.log"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    log_to(logging.FileHandler(path))
