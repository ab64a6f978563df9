"""Where the project keeps its data, artefacts and results.

Every folder can be moved by an environment variable, so that a cluster may keep artefacts on a shared disk.
"""

import os
from pathlib import Path


def _root() -> Path:
    """The repository when the package is installed from it in place, else the current folder."""
    repository = Path(__file__).resolve().parents[2]
    return repository if (repository / "pyproject.toml").is_file() else Path.cwd()


ROOT = _root()


def artifacts() -> Path:
    """Folder of the store: ``$DEEPNEIGHBORS_ARTIFACTS``, else ``artifacts/`` in the repository."""
    return Path(os.environ.get("DEEPNEIGHBORS_ARTIFACTS", ROOT / "artifacts"))


def data() -> Path:
    """Folder of prepared data sets: ``$DEEPNEIGHBORS_DATA``, else ``data/`` in the repository."""
    return Path(os.environ.get("DEEPNEIGHBORS_DATA", ROOT / "data"))


def recorded() -> Path:
    """Folder of the recorded results of the full profile: ``$DEEPNEIGHBORS_RECORDED``, else ``results/full/`` there."""
    return Path(os.environ.get("DEEPNEIGHBORS_RECORDED", ROOT / "results" / "full"))


def costs() -> Path:
    """Folder of what stages cost on few images: ``costs/`` beside the recorded results."""
    return recorded().parent / "costs"
