"""Provenance: what it names, what it must not name, and the state of git."""

import getpass
import importlib.util
import json
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from deepneighbors import provenance as module


def test_it_names_code_data_versions_and_hardware_and_no_place():
    record = module.provenance(config={"k": 75}, code_fingerprint="c", data_fingerprint="d", seconds=1.234)
    assert record["config"] == {"k": 75} and record["seconds"] == 1.23
    assert (record["code_fingerprint"], record["data_fingerprint"]) == ("c", "d")
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["python"] == platform.python_version()
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["memory_gb"] > 0
    assert record["date"].endswith("+00:00")
    text = json.dumps(record)
    for private in (platform.node(), str(Path.home()), str(Path.cwd()), f'"{getpass.getuser()}"'):
        assert private not in text


def _git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_is_that_of_the_package_only(tmp_path):
    (tmp_path / "package").mkdir()
    copy = shutil.copy(module.__file__, tmp_path / "package" / "provenance.py")
    spec = importlib.util.spec_from_file_location("provenance_elsewhere", copy)
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    shutil.rmtree(tmp_path / "package" / "__pycache__", ignore_errors=True)
    nothing = {"commit": None, "dirty": None}
    assert elsewhere.git_state() == nothing  # no repository
    _git(tmp_path, "init", "-q")
    assert elsewhere.git_state() == nothing  # in a repository that does not hold the package
    _git(tmp_path, "add", ".")
    assert elsewhere.git_state() == nothing  # no commit
    _git(tmp_path, "commit", "-q", "-m", "all")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "result.csv").write_text("1")
    assert elsewhere.git_state() == {"commit": commit, "dirty": False}
    Path(copy).write_text("changed = True\n")
    assert elsewhere.git_state() == {"commit": commit, "dirty": True}
