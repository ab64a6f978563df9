"""With which settings recorded results were made, where they are not the full profile's."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from deepneighbors.experiments import CHAPTERS, Run
from deepneighbors.report.notebook import Chapter, NotRun
from deepneighbors.report.tables import NOTHING
from deepneighbors.results import Result


def show_unlike(chapter: Chapter, *, name: str, caption: str, dataset: str | None = None) -> None:
    """Show :func:`unlike` of a chapter's recorded results on one data set as a table; nothing where nothing differs."""
    recorded = {each: chapter.recorded(each, dataset) for each in CHAPTERS[chapter.run.chapter].experiments}
    different = unlike(recorded, Run(chapter.run.chapter, profile="full", device="cpu", dataset=dataset))
    if len(different):
        chapter.grid(different, name=name, caption=caption)


def unlike(results: Mapping[str, Result | NotRun], run: Run) -> pd.DataFrame:
    """One line for each setting and value that some results, by experiment, share and that is not that of ``run``.

    Columns: setting, full profile, recorded, and the names of the results: *all* of those that are recorded, or *all but*
    some where these are fewer. No line where nothing differs. A setting that a result does not know, because it is newer, is
    left out; of one that is no more, the full profile's value is a dash.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    planned = {name: asdict(run.of(name).settings) for name in results}
    recorded = {name: result.provenance["config"] for name, result in results.items() if not isinstance(result, NotRun)}
    known = [*asdict(run.settings), "profile", "seed"]
    gone = sorted({setting for config in recorded.values() for setting in config} - set(known))
    for setting in (*asdict(run.settings), *gone):
        for name, config in recorded.items():
            value, made = _words(planned[name].get(setting, NOTHING)), _words(config.get(setting, NOTHING))
            if setting in config and made != value:
                found.setdefault((setting, value, made), []).append(name)
    rows = [(*line, _among(names, list(recorded))) for line, names in found.items()]
    return pd.DataFrame(rows, columns=["setting", "full profile", "recorded", "of"])


def _among(names: list[str], every: list[str]) -> str:
    others = [name for name in every if name not in names]
    if len(names) <= len(others) + 1:
        return ", ".join(names)
    return f"all but {', '.join(others)}" if others else "all"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
