"""What this machine offers for the computations, and what to do where something is missing."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepneighbors import paths, provenance
from deepneighbors.errors import InputError

BOOK_BUILDER = "1.0.4.post1"
OLDEST_TORCH = (2, 11)
DISK_GB = 3.0  # a full run of every chapter keeps about 2 GB of artefacts
MEMORY_GB = 8.0  # DkNN over 60,000 digits holds 4.8 GB; the quick profile needs 3
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "safetensors", "faiss-cpu")


@dataclass(frozen=True)
class Check:
    """One finding; ``remedy`` is empty where nothing is to be done. A run fails without the needed ones."""

    name: str
    found: str
    remedy: str = ""
    needed: bool = True

    @property
    def state(self) -> str:
        return "ok" if not self.remedy else "MISSING" if self.needed else "note"


def examine() -> Iterator[Check]:
    """All findings, the quick ones first."""
    yield _python()
    yield from map(_library, LIBRARIES)
    yield _book_builder()
    yield _device()
    yield _memory()
    yield _disk()
    yield from _data()


def report(checks: list[Check]) -> str:
    """A table of the findings, with what to do below each that needs it."""
    wide = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8}{check.name:<{wide}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<{wide + 10}}-> {check.remedy}")
    return "\n".join(lines)


def _python() -> Check:
    old = sys.version_info < (3, 11)
    return Check("python", platform.python_version(), "install Python 3.11 or newer" if old else "")


def _library(name: str) -> Check:
    found = provenance.version(name)
    if found is None and name == "faiss-cpu":
        remedy = "searches run on the torch backend; pip install faiss-cpu for the other one"
        return Check(name, "not installed", remedy, needed=False)
    if found is None:
        return Check(name, "not installed", f"pip install {name}")
    old = name == "torch" and tuple(map(int, found.split(".")[:2])) < OLDEST_TORCH
    return Check(name, found, "pip install 'torch>=2.11'" if old else "")


def _book_builder() -> Check:
    found = provenance.version("jupyter-book")
    remedy = "" if found == BOOK_BUILDER else f"to build the book: pip install jupyter-book=={BOOK_BUILDER}"
    return Check("jupyter-book", found or "not installed", remedy, needed=False)


def _device() -> Check:
    machine = provenance.hardware()
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    if machine["gpu"]:
        return Check("device", f"{machine['gpu']}; {cpu}")
    remedy = "smoke and quick do not need one; recompute full on a machine with CUDA"
    return Check("device", f"no GPU; {cpu}", remedy, needed=False)


def _memory() -> Check:
    total, free = provenance.memory_gb(), _available_gb()
    found = f"{total or '?'} GB, {free:.1f} GB of it free" if free is not None else f"{total or '?'} GB"
    short = free is not None and free < MEMORY_GB
    return Check("memory", found, "close other programs, or use --profile smoke" if short else "", needed=False)


def _available_gb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = (int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable:"))
    return next(values, None)


def _disk() -> Check:
    folder = paths.artifacts().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    remedy = f"free some space, or set DEEPNEIGHBORS_ARTIFACTS to a folder with {DISK_GB:.0f} GB"
    if not os.access(there, os.W_OK):
        return Check("store", f"{folder} cannot be written", "set DEEPNEIGHBORS_ARTIFACTS to another folder")
    return Check("store", f"{folder}, {free:.1f} GB free", remedy if free < DISK_GB else "")


def _data() -> Iterator[Check]:
    from deepneighbors import data

    try:
        mnist = data.load("mnist")
    except InputError as error:
        yield Check("data mnist", "not usable", str(error))
    else:
        yield Check("data mnist", f"{len(mnist.x_train)} + {len(mnist.x_test)} images, checked")
    for name in data.NAMES[1:]:
        found = (paths.data() / f"{name}.npz").is_file()
        remedy = f"only where you ask for it: it will be downloaded, or put {name}.npz in {paths.data()}"
        yield Check(f"data {name}", "prepared" if found else "not here", "" if found else remedy, needed=False)
