"""Image data sets as float tensors in ``[0, 1]``, read from a prepared folder, the embedded MNIST, or a download.

Order of look-up for a set ``name``: ``<data>/<name>.npz`` (arrays ``x_train, y_train, x_test, y_test``, uint8), the
embedded ``data/mnist/*.gz``, then torchvision's download into the data folder.
"""

import gzip
import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks, paths
from deepneighbors._torchvision import torchvision
from deepneighbors.errors import InputError

NAMES = ("mnist", "cifar10", "cifar100", "svhn")

# The published checksums of the unpacked files (LeCun, Cortes, Burges 1998), in the order x_train, y_train, x_test, y_test.
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class Dataset:
    """Images ``(N, channels, height, width)`` float32 in [0, 1] and labels ``(N,)`` int64, train and test."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            checks.images(f"x_{part} of {self.name}", x)
            checks.labels(f"y_{part} of {self.name}", y, len(x))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y_train.max()) + 1

    @property
    def fingerprint(self) -> str:
        """Hash of the images with their labels that does not depend on their order (hex, 16 characters)."""
        parts = [_digest(self.x_train, self.y_train), _digest(self.x_test, self.y_test)]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def load(name: str) -> Dataset:
    """Load a data set by name.

    Raises
    ------
    InputError
        An unknown name, a damaged file, or a set that is neither on this machine nor to be downloaded.
    """
    checks.one_of("dataset", name, NAMES)
    return _load(name, str(paths.data()))


@lru_cache(maxsize=2)
def _load(name: str, folder: str) -> Dataset:
    prepared = Path(folder) / f"{name}.npz"
    if prepared.is_file():
        arrays = _read_npz(prepared)
    elif name == "mnist" and (home := _mnist_folder(Path(folder))) is not None:
        arrays = read_mnist(home)
    else:
        arrays = _download(name, Path(folder))
    return _dataset(name, arrays)


def _mnist_folder(folder: Path) -> Path | None:
    candidates = [folder / "mnist", paths.ROOT / "data" / "mnist"]
    return next((path for path in candidates if path.is_dir()), None)


def read_mnist(folder: Path) -> list[np.ndarray]:
    """Read the four IDX files of MNIST, each checked by its published MD5.

    Returns
    -------
    x_train (60000, 28, 28), y_train (60000,), x_test (10000, 28, 28), y_test (10000,), uint8.
    """
    arrays = []
    for name, expected in MNIST_FILES.items():
        path = folder / f"{name}.gz"
        remedy = f"restore it with `git checkout -- data/mnist/{name}.gz` or delete the folder to download it again"
        if not path.is_file():
            raise InputError(f"MNIST's file {path.name} is missing from {folder.name}/; {remedy}")
        try:
            raw = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"MNIST's file {path.name} cannot be unpacked ({error}); {remedy}") from None
        if hashlib.md5(raw, usedforsecurity=False).hexdigest() != expected:
            raise InputError(f"MNIST's file {path.name} does not have its published MD5 {expected}; {remedy}")
        dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(dims))
    return arrays


def _read_npz(path: Path) -> list[np.ndarray]:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            missing = [key for key in keys if key not in stored]
            if missing:
                raise InputError(f"{path.name} has no array {missing[0]}; it needs {', '.join(keys)}")
            return [stored[key] for key in keys]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} is damaged ({error}); make it again or delete it") from None


def _download(name: str, folder: Path) -> list[np.ndarray]:
    torchvision()  # makes the import below pass beside a CPU-only torch
    from torchvision import datasets

    makers = {
        "mnist": lambda train: datasets.MNIST(folder, train=train, download=True),
        "cifar10": lambda train: datasets.CIFAR10(folder, train=train, download=True),
        "cifar100": lambda train: datasets.CIFAR100(folder, train=train, download=True),
        "svhn": lambda train: datasets.SVHN(folder, split="train" if train else "test", download=True),
    }
    try:
        parts = [makers[name](train) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"dataset {name!r} is not in the data folder and could not be downloaded ({error}); "
            f"put {name}.npz with x_train, y_train, x_test, y_test there and set DEEPNEIGHBORS_DATA to the folder"
        ) from None
    arrays = []
    for part in parts:
        images = np.asarray(part.data)
        images = images.transpose(0, 2, 3, 1) if name == "svhn" else images
        arrays += [images, np.asarray(part.labels if name == "svhn" else part.targets)]
    return arrays


def _dataset(name: str, arrays: list[np.ndarray]) -> Dataset:
    x_train, y_train, x_test, y_test = arrays
    return Dataset(name, _images(name, x_train), _labels(y_train), _images(name, x_test), _labels(y_test))


def _images(name: str, array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise InputError(
            f"the images of {name} have type {array.dtype} and shape {array.shape}; "
            "uint8 of shape (N, height, width) or (N, height, width, channels) is needed"
        )
    array = array[..., None] if array.ndim == 3 else array
    return torch.from_numpy(array.transpose(0, 3, 1, 2).astype(np.float32, order="C")).div_(255)


def _labels(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array).reshape(-1).astype(np.int64))


def _digest(x: Tensor, y: Tensor) -> str:
    """Sum of the hashes of (image, label) modulo 2^128: the same for any order of the samples."""
    rows = (x * 255).round().to(torch.uint8).flatten(1).numpy()
    total = 0
    for row, label in zip(rows, y.tolist(), strict=True):
        digest = hashlib.blake2b(row.tobytes() + bytes([label]), digest_size=16).digest()
        total += int.from_bytes(digest, "little")
    return f"{len(rows)}:{total % (1 << 128):032x}"
