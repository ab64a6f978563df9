"""A lazy graph of stages whose results are kept on disk under a key of everything that made them.

A *stage* is a function of a config, of the artefacts of other stages, and of a context (where to compute)
that does not change the answer. A *node* is a stage with its config and its inputs; making one computes
nothing. Its key is a hash of the stage's name and code, of the config, and of the keys of its inputs.
``Store.get`` loads ``<root>/<stage>/<key>/`` when it is there and sound, and otherwise computes it::

    @stage("train", uses=("deepneighbors.networks", "deepneighbors.training"))
    def train(config, inputs, context):
        ...
        return Payload(tensors=network.state_dict(), values={"accuracy": accuracy})

    artifact = Store("artifacts").get(train.node({"epochs": 2, "seed": 0}), Context(device="cuda"))

An artefact is written to a temporary folder that is renamed when it is complete, under a lock for its key.
So a killed run resumes at the last finished stage, and two runs at once compute each stage once.
"""

import contextlib
import copy
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import torch

from deepneighbors import _artifact_files
from deepneighbors._allocator import keep_freed_memory
from deepneighbors._artifact_files import Damaged
from deepneighbors.errors import InputError
from deepneighbors.fingerprint import fingerprint

logger = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """The store cannot do its work; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Payload:
    """What a stage returns: named tensors, and values that JSON can hold."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Where and how loudly a stage runs. It never enters a key, so it must not change the answer."""

    device: str = "cpu"
    progress: bool = False


@dataclass(frozen=True)
class Artifact:
    """A stored payload: tensors on the CPU, values, key and manifest. Treat the tensors as read-only."""

    key: str
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    manifest: dict[str, Any]


StageFunction = Callable[[dict, Sequence[Artifact], Context], Payload]


@dataclass(frozen=True)
class Stage:
    """A named function, and the modules whose code its answer depends on. A call runs the function."""

    name: str
    function: StageFunction
    uses: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.uses, self.function)

    def node(self, config: dict, inputs: Sequence["Node"] = ()) -> "Node":
        """The stage with a config (plain JSON values; tuples become lists) and the nodes it reads."""
        return Node(self, _canonical(config, f"The config of stage {self.name!r}"), tuple(inputs))

    def __call__(self, config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
        payload = self.function(config, inputs, context)
        if not isinstance(payload, Payload):
            raise TypeError(f"stage {self.name!r} returned a {type(payload).__name__} instead of a Payload")
        return payload


def stage(name: str, *, uses: Sequence[str] = ()) -> Callable[[StageFunction], Stage]:
    """Make a function a stage.

    Args:
        name: lower-case letters, digits and underscores; the stage's folder in the store.
        uses: modules whose code enters the key, besides the function and what it names in its own module.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"The stage name {name!r} must be lower-case letters, digits and underscores.")
    return lambda function: Stage(name, function, tuple(uses))


@dataclass(frozen=True)
class Node:
    """One piece of work: a stage, its config as canonical JSON, and its inputs. Made by ``Stage.node``."""

    stage: Stage
    config_json: str
    inputs: tuple["Node", ...] = ()

    @property
    def config(self) -> dict:
        return json.loads(self.config_json)  # a fresh copy, which a stage may change

    @cached_property
    def key(self) -> str:
        """16 hex digits."""
        inputs = [node.key for node in self.inputs]
        parts = [self.stage.name, self.config_json, inputs, self.stage.fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.stage.name} {self.key[:8]}"


class Store:
    """Artefacts below one folder.

    Args:
        root: the folder; it is made when something is written.
        memory: bytes of loaded tensors to keep for the next ``get``; the least recently used go first.
    """

    def __init__(self, root: str | os.PathLike, *, memory: int = 1 << 29) -> None:
        self.root = Path(root)
        self.memory = memory
        self._loaded: OrderedDict[str, Artifact] = OrderedDict()

    def folder(self, node: Node) -> Path:
        return self.root / node.stage.name / node.key

    def walk(self, *nodes: Node) -> Iterator[Node]:
        """The nodes and all that they depend on, upstream first, each key once."""
        seen: set[str] = set()

        def visit(node: Node) -> Iterator[Node]:
            if node.key not in seen:
                seen.add(node.key)
                for upstream in node.inputs:
                    yield from visit(upstream)
                yield node

        for node in nodes:
            yield from visit(node)

    def state(self, node: Node) -> str:
        """``done``, ``missing`` or ``damaged``; reads every byte to know."""
        try:
            return "missing" if _read(self.folder(node), node) is None else "done"
        except Damaged:
            return "damaged"

    def seconds(self, node: Node) -> float:
        """Seconds that a done node took, from its manifest.

        Raises:
            StoreError: it is missing or damaged.
        """
        try:
            return float(_artifact_files.read_manifest(self.folder(node), node.key)["seconds"])
        except Damaged as reason:
            raise StoreError(f"{node} has no time: {reason}.") from reason

    def size(self, node: Node) -> int:
        """Bytes on disk, 0 when missing."""
        folder = self.folder(node)
        return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0

    def get(self, node: Node, context: Context | None = None) -> Artifact:
        """Load the artefact of a node, or compute it and all that it needs.

        Raises:
            StoreError: the store cannot be written, for instance because the disk is full.
        """
        context = context or Context()
        artifact = self._recall(node.key) or self._load(node) or self._compute(node, context)
        self._keep(artifact)
        return replace(artifact, tensors=dict(artifact.tensors), values=copy.deepcopy(artifact.values))

    def _load(self, node: Node) -> Artifact | None:
        try:
            return _read(self.folder(node), node)
        except Damaged as reason:
            logger.warning("%s is damaged (%s) and will be computed again", node, reason)
            return None

    def _compute(self, node: Node, context: Context) -> Artifact:
        inputs = [self.get(upstream, context) for upstream in node.inputs]
        with self._locked(node):
            # Another process may have finished it while this one waited. What is damaged was reported above.
            with contextlib.suppress(Damaged):
                artifact = _read(self.folder(node), node)
                if artifact is not None:
                    return artifact
            logger.info("%s started on %s", node, context.device)
            keep_freed_memory()
            start = time.perf_counter()
            payload = node.stage(node.config, inputs, context)
            seconds = time.perf_counter() - start
            artifact = self._write(node, payload, device=context.device, seconds=seconds)
            logger.info("%s done in %.1f s", node, seconds)
            return artifact

    def _write(self, node: Node, payload: Payload, *, device: str, seconds: float) -> Artifact:
        files = _artifact_files.encode(payload.tensors, payload.values)
        folder = self.folder(node)
        temporary = None
        try:
            self._remove_leftovers(folder.parent, node.key)
            temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{node.key}-", dir=folder.parent))
            temporary.chmod(0o755)
            _artifact_files.write(temporary, files, _manifest(node, device=device, seconds=seconds))
            artifact = _read(temporary, node)
            if folder.exists():  # damaged: under the lock nobody else replaces it
                shutil.rmtree(folder)
            temporary.rename(folder)
            _artifact_files.sync_folder(folder.parent)
        except BaseException as error:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError | Damaged):
                raise StoreError(self._explain(error, node, files)) from error
            raise
        assert artifact is not None
        return artifact

    def _explain(self, error: Exception, node: Node, files: dict[str, bytes]) -> str:
        size = sum(map(len, files.values())) / 1e6
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"The disk of {self.root} is full: {node} needs {size:.1f} MB; free some space or set "
                "DEEPNEIGHBORS_ARTIFACTS to another disk, and run the same command again to go on."
            )
        return f"The result of {node} ({size:.1f} MB) cannot be written to {self.root}: {error}."

    @contextlib.contextmanager
    def _locked(self, node: Node) -> Iterator[None]:
        try:
            lock = _lock(self.root / node.stage.name, node.key)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                logger.info("%s is being computed by another process; waiting", node)
                lock.acquire()
        except OSError as error:
            raise StoreError(self._explain(error, node, {})) from error
        try:
            yield
        finally:
            lock.release()

    @staticmethod
    def _remove_leftovers(folder: Path, own_key: str) -> None:
        """Remove what killed runs left; a temporary folder whose key is locked belongs to a live one."""
        for path in folder.glob(".tmp-*"):
            key = path.name.split("-")[1]
            if key == own_key:
                shutil.rmtree(path, ignore_errors=True)
                continue
            with contextlib.suppress(filelock.Timeout), _lock(folder, key).acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)

    def _recall(self, key: str) -> Artifact | None:
        artifact = self._loaded.get(key)
        # A tensor that was changed in place has a higher version, and its file is right: load it again.
        if artifact is None or any(tensor._version for tensor in artifact.tensors.values()):
            return None
        return artifact

    def _keep(self, artifact: Artifact) -> None:
        self._loaded[artifact.key] = artifact
        self._loaded.move_to_end(artifact.key)
        while sum(map(_tensor_bytes, self._loaded.values())) > self.memory:
            self._loaded.popitem(last=False)


def _tensor_bytes(artifact: Artifact) -> int:
    return sum(tensor.nbytes for tensor in artifact.tensors.values())


def _canonical(value: object, what: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must hold plain finite JSON values only ({error}).") from error


def _manifest(node: Node, *, device: str, seconds: float) -> dict[str, Any]:
    return {
        "stage": node.stage.name,
        "key": node.key,
        "config": node.config,
        "inputs": [upstream.key for upstream in node.inputs],
        "code": node.stage.fingerprint,
        "torch": torch.__version__,
        "device": str(device),
        "seconds": round(seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _read(folder: Path, node: Node) -> Artifact | None:
    contents = _artifact_files.read(folder, node.key)
    return None if contents is None else Artifact(node.key, *contents)


def _lock(folder: Path, key: str) -> filelock.BaseFileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f".lock-{key}")
