"""What was found so far: the papers' claims, decided by the results that exist."""

from pathlib import Path

import pandas as pd

from deepneighbors import experiments, paths
from deepneighbors.report import publish, tables
from deepneighbors.results import read_all


def folder(profile: str) -> Path:
    """Where the results of a profile lie: the recorded ones for ``full``, else the store's."""
    return paths.recorded() if profile == "full" else paths.artifacts() / "results" / profile


def results_by_profile(profile: str) -> dict[str, pd.DataFrame]:
    """Tidy results of the full profile and of ``profile``, as ``paper.claims.evaluate`` takes them."""
    return {name: read_all(folder(name)) for name in dict.fromkeys(["full", profile])}


def claims(profile: str) -> pd.DataFrame:
    """Columns claim, paper, place, verdict, evidence; one line a claim. Papers are citations."""
    from deepneighbors.paper import claims

    frame = claims.evaluate(results_by_profile(profile))
    return frame.assign(paper="{cite:t}`" + frame["paper"] + "`")


def fragment(profile: str) -> str:
    """MyST of the front page's table: each claim and its verdict."""
    frame = claims(profile)[["paper", "claim", "verdict"]]
    caption = f"What the papers claim, and what we found so far (full profile where it was run, else `{profile}`)."
    return tables.grid(frame, caption=caption, name="tab-findings").markdown()


def complete(chapter: Path) -> bool:
    """Whether the result files of a published chapter still exist; the scorecard reads them."""
    records = publish.result_records(publish.read_notebook(chapter))
    return all(_file(record).is_file() for record in records)


def _file(record: dict) -> Path:
    run = experiments.Run(record["chapter"], profile=record["profile"], device="cpu", dataset=record["dataset"])
    return folder(record["profile"]) / run.folder / f"{record['experiment']}.csv"
