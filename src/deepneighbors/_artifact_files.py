"""The files of one artefact: how they are written, and how every byte is checked when they are read.

A folder holds ``values.json``, ``tensors.safetensors`` when there are tensors, and ``manifest.json`` with the
size and the SHA-256 of each, and its own.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


class Damaged(Exception):
    """What is on disk is not what was written."""


def encode(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> dict[str, bytes]:
    """File names and contents. Tensors go to the CPU; numpy and torch scalars in values become numbers."""
    files = {"values.json": json.dumps(values, default=_plain).encode()}
    if tensors:
        # Clones, because safetensors refuses views that share memory.
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        files["tensors.safetensors"] = safetensors.torch.save(plain)
    return files


def write(folder: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Write the files and the manifest into an empty folder, through to the disk."""
    for name, data in files.items():
        _write_file(folder / name, data)
    manifest = manifest | {
        "files": {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    }
    manifest["sha256"] = _checksum(manifest)
    _write_file(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    sync_folder(folder)


def read(folder: Path, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]] | None:
    """Tensors, values and manifest; None when there is no folder.

    Raises:
        Damaged: a file is absent or not as it was written, or the folder holds another key.
    """
    if not folder.is_dir():
        return None
    manifest = read_manifest(folder, key)
    data = {name: _read_file(folder / name, expected) for name, expected in manifest["files"].items()}
    with torch.inference_mode(False):  # inference tensors have no version, by which the store sees changes
        blob = data.get("tensors.safetensors")
        # The library's own order changes from process to process, and with it whatever a stage derives from it.
        tensors = {} if blob is None else dict(sorted(safetensors.torch.load(blob).items()))
    return tensors, json.loads(data["values.json"]), manifest


def sync_folder(folder: Path) -> None:
    """Make a rename durable; some file systems cannot, and then the checksums guard what is left."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _checksum(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, key: str) -> dict[str, Any]:
    """The manifest of an artefact, checked; the payload is not read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged("manifest.json cannot be read") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _checksum(manifest):
        raise Damaged("manifest.json was changed")
    if manifest["key"] != key:
        raise Damaged("manifest.json is of another key")
    return manifest


def _read_file(path: Path, expected: dict[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read") from error
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(f"{path.name} was changed")
    return data


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
