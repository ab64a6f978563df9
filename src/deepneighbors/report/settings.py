"""With which settings recorded results were made, where they are not the full profile's."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from deepneighbors.experiments import Run
from deepneighbors.report.notebook import NotRun
from deepneighbors.report.tables import NOTHING
from deepneighbors.results import Result


def unlike(results: Mapping[str, Result | NotRun], run: Run) -> pd.DataFrame:
    """One line for each setting and value that some results, by experiment, share and that is not that of ``run``.

    Columns: setting, full profile, recorded, and the names of the results. One line of dashes where nothing differs. A
    setting that a result does not know, because it is newer, is left out.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    planned = {name: asdict(run.of(name).settings) for name in results}
    for setting in asdict(run.settings):
        for name, result in results.items():
            recorded, value = {} if isinstance(result, NotRun) else result.provenance["config"], planned[name][setting]
            if setting in recorded and _words(recorded[setting]) != _words(value):
                found.setdefault((setting, _words(value), _words(recorded[setting])), []).append(name)
    rows = [(*line, ", ".join(names)) for line, names in found.items()]
    return pd.DataFrame(rows or [(NOTHING,) * 4], columns=["setting", "full profile", "recorded", "of"])


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
