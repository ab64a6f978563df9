"""Real runs at the smoke profile that are killed in every stage, race on one store, fill the disk or meet damaged files."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from deepneighbors import results
from deepneighbors.experiments import CHAPTERS, Run
from deepneighbors.plan import nodes_of

pytestmark = pytest.mark.usefixtures("on_few_test_digits")

# One process imports everything once and forks a child for each attempt, which kills itself with SIGKILL as soon as it
# starts a stage that was never killed before: under its lock, and before its artefact is there.
KILLED = """
import logging, os, signal, sys
import torch
from deepneighbors import data
from deepneighbors.experiments import Run, compute_all
from deepneighbors.plan import nodes_of

torch.set_num_threads(1)
chapter, events, experiments, *changes = sys.argv[1:]
experiments = experiments.split(",")

class Killer(logging.Handler):
    def emit(self, record):
        words = record.getMessage().split()
        if len(words) > 2 and words[2] in ("started", "done"):
            stage, key, what = words[:3]
            seen = [line.split() for line in open(events)] if os.path.exists(events) else []
            kill = what == "started" and ["killed", stage] not in [line[:2] for line in seen]
            with open(events, "a") as file:
                print(what, stage, key, file=file)
                if kill:
                    print("killed", stage, key, file=file)
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)

logging.getLogger("deepneighbors").setLevel(logging.INFO)
logging.getLogger("deepneighbors").handlers = [Killer()]
run = Run(chapter, profile="smoke", device="cpu", changes=tuple(changes))
nodes = nodes_of(run, experiments)  # children inherit the keys, and the data
data.load("mnist")
while True:
    child = os.fork()
    if not child:
        for node in nodes:
            run.store.get(node, run.context)
        compute_all(run, experiments)  # nothing is left to compute: the results, once
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


# Experiments that together have every stage of their chapter with the fewest nodes.
COVER = {
    "knn_dknn_attack": ("gallery", "credibility", "exact", "undefended"),
    "nnif_detection": ("gallery", "estimators", "fast", "white_box"),
    "poisoning_ila": ("mixtures", "neighbor_share", "defences", "confirmation", "why_it_failed", "ila_credibility"),
}
# Smaller than smoke where that saves time.
CHANGES = {
    "nnif_detection": ("view_attacks=fgsm", "ablation_attacks=fgsm", "steps=5", "estimator_training=100"),
    "poisoning_ila": ("ila_targets=mnist_cnn,lenet", "cnn_images=300", "poison_attacks=svm_poisoning"),
    "knn_dknn_attack": ("train_images=500", "margin_steps=20", "dknn_margin_steps=20", "clean_images=20"),
}  # fmt: skip


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, "DEEPNEIGHBORS_ARTIFACTS": str(store), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def command(*arguments: str, profile: str = "smoke") -> list[str]:
    return [sys.executable, "-m", "deepneighbors.cli", *arguments, "--profile", profile]


def deepneighbors(store: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), env=environment(store), capture_output=True, text=True, timeout=900)


def events(log: str) -> Counter:
    """How often each node was started and done, by a log."""
    lines = [line.split() for line in log.splitlines()]
    return Counter((line[3], *line[1:3]) for line in lines if len(line) > 3 and line[3] in ("started", "done"))


@pytest.mark.parametrize("chapter", list(CHAPTERS))
def test_a_run_that_is_killed_in_every_stage_repeats_no_finished_one(chapter, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "store"))
    log = tmp_path / "events"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, chapter, str(log), ",".join(COVER[chapter]), *CHANGES[chapter]],
        env=environment(tmp_path / "store"), timeout=900,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = Counter(tuple(line.split()) for line in log.read_text().splitlines())
    run = Run(chapter, profile="smoke", device="cpu", changes=CHANGES[chapter])
    nodes = nodes_of(run, COVER[chapter])
    killed = {names[1:] for names in said if names[0] == "killed"}
    assert {stage for stage, _ in killed} == {node.stage.name for node in nodes_of(run)}
    for node in nodes:
        name = (node.stage.name, node.key[:8])
        assert said["done", *name] == 1 and said["started", *name] == 1 + (name in killed)
        assert run.store.state(node) == "done"
    repaired = spoil_and_run_again(chapter, run, tmp_path)
    assert repaired == {node.stage.name: 1 for node in nodes}


def spoil_and_run_again(chapter: str, run: Run, folder: Path) -> Counter:
    """Cut or flip a byte in one artefact of every stage; which stages were computed again, to the same results."""
    before = tables(folder / "store")
    spoiled: dict[str, str] = {}
    for node in nodes_of(run, COVER[chapter]):
        if node.stage.name not in spoiled:
            spoiled[node.stage.name] = node.key
            place = max(run.store.folder(node).glob("[tv]*"), key=lambda path: path.stat().st_size)
            content = bytearray(place.read_bytes())
            if len(spoiled) % 2:
                del content[len(content) // 2 :]
            else:
                content[len(content) // 2] ^= 0x10
            place.write_bytes(content)
    shutil.rmtree(folder / "store" / "results")
    chosen = [part for change in run.changes for part in ("--set", change)]
    chosen += [part for name in COVER[chapter] for part in ("--experiment", name)]
    done = deepneighbors(folder / "store", "run", chapter, "--device", "cpu", *chosen)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is damaged") >= len(spoiled)
    again = events(done.stderr)
    assert {(stage, key) for what, stage, key in again if what == "done"} == {(s, k[:8]) for s, k in spoiled.items()}
    assert tables(folder / "store") == before
    return Counter(stage for what, stage, _ in again.elements() if what == "done")


def tables(store: Path) -> dict[str, str]:
    """The results by name, less the columns that hold times."""
    found = {path.stem: results.read_csv(path) for path in sorted((store / "results").rglob("*.csv"))}
    assert found
    return {name: table[~table["metric"].str.contains("seconds")].to_csv() for name, table in found.items()}


def test_two_runs_at_once_compute_every_node_once(tmp_path):
    arguments = command("run", "poisoning_ila", "--experiment", "neighbor_share", "--device", "cpu")
    both = [subprocess.Popen(arguments, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    logs = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], logs
    said = events("\n".join(logs))
    assert set(said.values()) == {1}
    assert {key for what, _, key in said if what == "done"} == {
        path.parent.name[:8] for path in tmp_path.glob("*/*/manifest.json")
    }


SMALL_DISK = """
set -e
mount -t tmpfs -o size=3m none "$1"
shift
set +e
"$@"; echo "ended with $?"
find "$DEEPNEIGHBORS_ARTIFACTS" -name '.tmp-*' | sed 's/^/left /'
mount -o remount,size=200m none "$DEEPNEIGHBORS_ARTIFACTS"
"$@"; echo "ended with $?"
"${@:1:3}" status --profile smoke
"""
# The same where no mount is granted, as in most containers: the first run meets the error of a full disk after 3 MB.
STAND_IN = """
shift
"$1" -c "$ROOM" "${@:4}"; echo "ended with $?"
find "$DEEPNEIGHBORS_ARTIFACTS" -name '.tmp-*' | sed 's/^/left /'
"$@"; echo "ended with $?"
"${@:1:3}" status --profile smoke
"""
ROOM = """
import errno, os, sys
from deepneighbors import _artifact_files, cli

write, room = _artifact_files._write_file, 3_000_000

def limited(path, data):
    global room
    room -= len(data)
    if room < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(path, data)

_artifact_files._write_file = limited
sys.exit(cli.main())
"""


def small_disk() -> list[str]:
    """The command that runs others on a disk of 3 MB: a real one where this machine grants a mount namespace."""
    private = ["unshare", "--map-root-user", "--mount"]
    granted = shutil.which("unshare") and subprocess.run([*private, "true"], capture_output=True).returncode == 0
    return [*private, "bash", "-c", SMALL_DISK, "bash"] if granted else ["bash", "-c", STAND_IN, "bash"]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_space(tmp_path):
    arguments = command("run", "poisoning_ila", "--experiment", "neighbor_share", "--device", "cpu")
    done = subprocess.run(
        [*small_disk(), str(tmp_path), *arguments],
        env={**environment(tmp_path), "ROOM": ROOM}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("ended")] == ["ended with 2", "ended with 0"]
    assert not [line for line in lines if line.startswith("left")]
    sentence = [line for line in done.stderr.splitlines() if "is full" in line]
    assert len(sentence) == 1 and "free some space or set DEEPNEIGHBORS_ARTIFACTS" in sentence[0]
    assert "Traceback" not in done.stderr
    said = events(done.stderr)
    assert {count for (what, *_), count in said.items() if what == "done"} == {1}  # what was done before is not repeated
    share = next(line.split() for line in lines if "neighbor_share" in line and "/" in line)
    assert share[1] == share[2] and share[3:5] == ["0", "0"]


def test_a_killed_worker_leaves_no_lock_behind(tmp_path):
    arguments = command("run", "poisoning_ila", "--experiment", "neighbor_share", "--device", "cpu")
    with subprocess.Popen(arguments, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "started" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL and list(tmp_path.glob("*/.lock-*"))
    assert deepneighbors(tmp_path, *arguments[3:-2]).returncode == 0
