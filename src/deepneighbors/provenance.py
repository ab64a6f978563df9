"""Where a result comes from: code, config, data, versions, hardware. No host, user or folder names."""

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

GIT_SECONDS = 20
VERSIONS = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "faiss-cpu", "foolbox")


def provenance(*, config: dict, code_fingerprint: str, data_fingerprint: str, seconds: float) -> dict[str, Any]:
    """What is kept beside a result, as plain JSON values.

    Args:
        config: settings of the experiment.
        code_fingerprint: of the stages that computed it.
        data_fingerprint: of the data set.
        seconds: wall seconds.
    """
    return {
        **git_state(),
        "config": config,
        "code_fingerprint": code_fingerprint,
        "data_fingerprint": data_fingerprint,
        "versions": versions(),
        "hardware": hardware(),
        "seconds": round(seconds, 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state() -> dict[str, Any]:
    """``commit``, and ``dirty``: whether the package's code differs from it. Both None outside git."""
    commit = _git("rev-parse", "HEAD") if _git("ls-files", Path(__file__).name) else None
    changes = _git("status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that compute; None where one is not installed."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def version(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory in GB, and the name of the GPU, or None."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": memory_gb(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def memory_gb() -> float | None:
    """Physical memory in GB (10^9 bytes); None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _git(*arguments: str) -> str | None:
    """Output of git in the package's folder, or None where git, a repository or a commit is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
