"""A run in several processes: the results of one, each stage once, and no process left when one of them is killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepneighbors import cli, parallel, results
from deepneighbors.errors import InputError
from deepneighbors.experiments import Run
from deepneighbors.plan import nodes_of, uses_device
from deepneighbors.store import StoreError

pytestmark = pytest.mark.usefixtures("on_few_test_digits")

# The smallest experiment of two stages; its points are made by 100 iterations where a test needs time to kill somebody.
EXPERIMENT = "poisoned_classifier"
ARGUMENTS = ("run", "poisoning_ila", "--experiment", EXPERIMENT, "--profile", "smoke", "--device", "cpu")


def start(store: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "DEEPNEIGHBORS_ARTIFACTS": str(store), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deepneighbors.cli", *ARGUMENTS, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def started_line(process: subprocess.Popen) -> str:
    """The log up to the first stage that a worker has started."""
    log = ""
    for line in process.stderr:
        log += line
        if " started on " in line:
            return log
    raise AssertionError(log)


def workers_of(process: subprocess.Popen) -> set[int]:
    """Process numbers of the workers: children that run stages, not multiprocessing's own tracker of resources."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    return {int(number) for number in found.stdout.split()}


def wait_until_gone(numbers: set[int]) -> None:
    until = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < until, f"{numbers} did not all end"
        time.sleep(0.1)


def test_two_workers_compute_each_stage_once_and_what_one_computes(tmp_path, monkeypatch):
    with start(tmp_path / "two", "--workers", "2") as process:
        said, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "two"))
    nodes = nodes_of(Run("poisoning_ila", profile="smoke", device="cpu"), [EXPERIMENT])
    assert Counter(re.findall(r"(\w{8}) done in", log)) == Counter(node.key[:8] for node in nodes)
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "one"))
    assert cli.main(list(ARGUMENTS)) == 0
    folders = [tmp_path / name / "results" / "smoke" / "poisoning_ila" for name in ("one", "two")]
    one, two = (results.Result.load(folder, EXPERIMENT) for folder in folders)
    assert one.table.equals(two.table) and said == f"{EXPERIMENT}: {len(one.table)} rows\n"
    assert (one.provenance["workers"], two.provenance["workers"]) == (1, 2)


def test_a_killed_worker_ends_the_run_with_one_sentence(tmp_path):
    with start(tmp_path, "--workers", "2", "--set", "svm_iterations=100") as process:
        started_line(process)
        workers = workers_of(process)
        assert len(workers) == 2
        os.kill(min(workers), signal.SIGKILL)
        _, log = process.communicate(timeout=120)
    assert process.returncode == 2
    assert log.rstrip().endswith("with fewer --workers if memory is short.") and "Traceback" not in log
    wait_until_gone(workers)


def test_the_workers_end_with_a_killed_run(tmp_path):
    with start(tmp_path, "--workers", "2", "--set", "svm_iterations=1000") as process:
        started_line(process)
        workers = workers_of(process)
        assert len(workers) == 2
        process.kill()
        process.communicate(timeout=60)
    wait_until_gone(workers)


def test_a_stage_that_finds_the_memory_full_is_tried_again_with_fewer_at_once(monkeypatch):
    """Memory holds two stages at once until five have fitted, and then all three that workers could do."""
    lock, inside, answers, most = threading.Lock(), set(), [], []

    def stage(key: str) -> int:
        with lock:
            fitted = sum(not full for _, full in answers)
            full = fitted < 5 and len(inside) == 2
            inside.add(key)
            most.append((fitted, len(inside)))
        time.sleep(0.1)
        with lock:
            inside.discard(key)
            answers.append((key, full))
        return parallel._FULL if full else 0

    monkeypatch.setattr(parallel, "_stage", stage)
    monkeypatch.setattr(parallel, "_summary", lambda name: len(answers))
    nodes = dict.fromkeys("abcdefghijklmnop", "a node")
    jobs = {key: set() for key in nodes} | {"all": set(nodes)}
    with ThreadPoolExecutor(3) as pool:
        said = list(parallel._in_order(pool, jobs, nodes, 3))
    assert said == [("all", len(answers))] and not jobs
    assert sorted(key for key, full in answers if not full) == sorted(nodes)
    assert 1 <= sum(full for _, full in answers) <= 4
    assert max(count for _, count in most) == 3 == max(count for fitted, count in most if fitted > 5)


def test_a_stage_that_fills_the_memory_alone_is_one_sentence(monkeypatch):
    monkeypatch.setattr(parallel, "_stage", lambda key: parallel._FULL)
    with ThreadPoolExecutor(2) as pool, pytest.raises(StoreError, match="^a node needs more memory than the GPU has free"):
        list(parallel._in_order(pool, {"a": set()}, {"a": "a node"}, 2))


def test_a_summary_does_not_wait_for_stages_that_it_does_not_need(monkeypatch):
    done = []
    monkeypatch.setattr(parallel, "_stage", lambda key: done.append(key) or 0)
    monkeypatch.setattr(parallel, "_summary", lambda name: done.append(name) or 0)
    jobs = {"a": set(), "b": set(), "c": {"a"}, "of a": {"a"}, "of all": {"a", "b", "c"}}
    with ThreadPoolExecutor(1) as pool:
        said = list(parallel._in_order(pool, jobs, dict.fromkeys("abc", "a node"), 1))
    assert done == ["a", "of a", "b", "c", "of all"] and [name for name, _ in said] == ["of a", "of all"]


def test_stages_without_the_device_are_mixed_with_the_others():
    nodes = nodes_of(Run("poisoning_ila", profile="full", device="cpu"))
    mixed = parallel._mixed(nodes)
    assert sorted(node.key for node in mixed) == sorted(node.key for node in nodes)
    for kind in (True, False):
        one, other = ([node.key for node in part if uses_device(node.stage.function) == kind] for part in (nodes, mixed))
        assert one == other and one
    half = [uses_device(node.stage.function) for node in mixed[: len(mixed) // 2]]
    assert abs(sum(half) / len(half) - sum(uses_device(node.stage.function) for node in nodes) / len(nodes)) < 0.01


def test_bad_numbers_of_workers_are_refused(tmp_path, capsys):
    run = Run("poisoning_ila", profile="smoke", device="cpu")
    with pytest.raises(InputError, match="workers is 0"):
        list(parallel.compute_all(run, workers=0))
    with pytest.raises(InputError, match="experiment is 'nothing'"):
        list(parallel.compute_all(run, ["nothing"], workers=2))
    assert cli.main([*ARGUMENTS, "--workers", "2", "--task", "some"]) == 2
    assert capsys.readouterr().err == ("--workers is 2 with --task; the stages of a task run one after the other\n")
