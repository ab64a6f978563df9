"""The experiments of the book, by chapter.

``compute(Run("knn_dknn_attack", profile="quick"), "knn_attack")`` runs what the store lacks and returns a tidy result.
"""

from deepneighbors import checks, paths
from deepneighbors.experiments import base, knn_dknn_attack, nnif_detection, poisoning_ila
from deepneighbors.experiments.base import Chapter, Experiment, Run
from deepneighbors.results import Result

__all__ = [
    "CHAPTERS",
    "Chapter",
    "Experiment",
    "Run",
    "code_fingerprint",
    "compute",
    "compute_all",
    "recorded",
]

CHAPTERS: dict[str, Chapter] = {
    chapter.name: chapter for chapter in (knn_dknn_attack.CHAPTER, nnif_detection.CHAPTER, poisoning_ila.CHAPTER)
}


def compute(run: Run, name: str) -> Result:
    """Result of one experiment; runs what is missing, and resumes where a killed run stopped."""
    return base.compute(run, CHAPTERS[run.chapter], name)


def compute_all(run: Run, names: list[str] | None = None) -> dict[str, Result]:
    """Results of several experiments of the chapter, by default all."""
    return {name: compute(run, name) for name in names or CHAPTERS[run.chapter].experiments}


def recorded(chapter: str, name: str, *, profile: str = "full", dataset: str | None = None) -> Result | None:
    """A result that was computed before: the repository's for the full profile; None when there is none."""
    checks.one_of("chapter", chapter, CHAPTERS)
    checks.one_of("experiment", name, CHAPTERS[chapter].experiments)
    root = paths.recorded() if profile == "full" else paths.artifacts() / "results" / profile
    folder = root / Run(chapter, profile=profile, device="cpu", dataset=dataset).folder
    return Result.load(folder, name) if (folder / f"{name}.json").is_file() else None


def code_fingerprint(chapter: str, name: str, *, profile: str = "quick") -> str:
    """Fingerprint of the present code of an experiment, to compare with a result's provenance."""
    run = Run(chapter, profile=profile, device="cpu")
    return CHAPTERS[chapter].experiments[name].code(run.of(name))
