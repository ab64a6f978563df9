"""The same stages by papermill alone, by Snakemake on one machine and by a real SLURM of one node: the same manifests."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import command_server
import pytest
import yaml

from deepneighbors import plan
from deepneighbors.experiments import Run
from deepneighbors.report.gate import gate

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = "poisoning_ila"  # the fewest stages of the three at the smoke profile
PROFILES = sorted(path.name for path in (ROOT / "workflow" / "profiles").iterdir())
SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

pytestmark = pytest.mark.usefixtures("on_few_test_digits")


def environment(store: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "DEEPNEIGHBORS_ARTIFACTS": str(store), "OMP_NUM_THREADS": "1", **more}


def snakemake(folder: Path, *arguments: str, profile: str = "local", config: str = "", **more: str):
    """Run the workflow from ``folder``, with the store in its ``artifacts/``."""
    command = [
        sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile"), "--workflow-profile",
        str(ROOT / "workflow" / "profiles" / profile), "--directory", str(folder), "--config", f"runs={CHAPTER}",
        *config.split(), *arguments,
    ]  # fmt: skip
    asked = environment(folder / "artifacts", **more)
    return subprocess.run(command, env=asked, capture_output=True, text=True, timeout=1200)


def manifests(store: Path) -> dict[str, dict]:
    """All manifests by stage and key, less what may differ between two runs: when, and how long."""
    found = {}
    for path in store.glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        changing = ("seconds", "created", "sha256")
        found[f"{path.parts[-3]}/{path.parts[-2]}"] = {k: v for k, v in manifest.items() if k not in changing}
    return found


def check_receipts(store: Path) -> None:
    """Every task of the plan has a receipt that holds the manifests of its artefacts."""
    run = Run(CHAPTER, profile="smoke", device="cpu")
    known = plan.tasks(run)
    for task in known:
        receipt = json.loads((store / "receipts" / f"{task.name}.json").read_text())
        for node in task.nodes:
            on_disk = json.loads((store / node.stage.name / node.key / "manifest.json").read_text())
            assert receipt["artifacts"][node.key] == on_disk
    assert len(known) > 10


@pytest.fixture(scope="module")
def command(on_few_test_digits):
    """What stands for ``deepneighbors`` where many jobs start it. Other tests start it as users do."""
    with command_server.command(CHAPTER) as executable:
        yield executable


@pytest.fixture(scope="module")
def executed(tmp_path_factory, on_few_test_digits):
    """A folder with the chapter's notebook as papermill executed it, and its store."""
    folder = tmp_path_factory.mktemp("papermill")
    command = [
        sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{CHAPTER}.ipynb"), str(folder / "out.ipynb"), "-p",
        "profile", "smoke", "-p", "device", "cpu", "--cwd", str(ROOT), "--no-progress-bar",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(folder / "artifacts"), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def by_papermill(executed):
    """Manifests that the notebook makes."""
    return manifests(executed / "artifacts")


def test_the_notebook_runs_and_passes_the_gate(executed):
    """As the other notebooks in their own tests; this one would take minutes twice."""
    gate(executed / "out.ipynb")


def test_snakemake_on_one_machine_makes_what_papermill_makes(by_papermill, command, tmp_path):
    done = snakemake(tmp_path, "-c", "2", "--until", "results", config=f"device=cpu command={command}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Finished jobid") > 10
    assert manifests(tmp_path / "artifacts") == by_papermill  # the checksums of the payloads too
    check_receipts(tmp_path / "artifacts")
    again = snakemake(tmp_path, "-c", "2", "--until", "results", config="device=cpu")
    assert again.returncode == 0 and "Finished jobid" not in again.stderr


@pytest.fixture
def slurm():
    """A cluster of this machine alone, on loopback; the environment that its users need."""
    missing = [name for name in SLURM if not find(name)]
    if missing:
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}")
    # Sockets have short names only, and munged trusts no folder that others may write to.
    folder = Path("/run" if os.access("/run", os.W_OK) else Path.home()) / f"deepneighbors-slurm-{os.getpid()}"
    folder.mkdir(mode=0o755)
    started: list[subprocess.Popen] = []
    try:
        yield start_cluster(folder, started)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def find(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")


def start_cluster(folder: Path, started: list[subprocess.Popen]) -> dict[str, str]:
    """Start munged, slurmctld and slurmd in the foreground; skip where one of them cannot run."""
    key, host, user = folder / "munge.key", socket.gethostname().split(".")[0], subprocess.getoutput("id -un")
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(mode=0o755)
    ports = [free_port() for _ in range(2)]
    (folder / "slurm.conf").write_text(
        f"""ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    asked = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
        with (folder / f"{command[0]}.out").open("w") as log:
            started.append(subprocess.Popen([find(command[0]), *command[1:]], env=asked, stdout=log, stderr=log))
        time.sleep(2)
        if started[-1].poll() is not None:
            pytest.skip(f"{command[0]} cannot run here: {(folder / f'{command[0]}.out').read_text()[-300:]}")
    # Snakemake's jobs start their step without the variables of SLURM, as on a cluster whose configuration is in /etc.
    wrapper = folder / "bin" / "srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {find("srun")} "$@"\n')
    wrapper.chmod(0o755)
    asked["PATH"] = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    deadline = time.monotonic() + 60
    while "idle" not in subprocess.run(["sinfo"], env=asked, capture_output=True, text=True).stdout:
        if time.monotonic() > deadline:
            pytest.skip("the node of SLURM does not become idle here")
        time.sleep(1)
    return {name: asked[name] for name in ("SLURM_CONF", "PATH")}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_slurm_makes_what_papermill_makes(by_papermill, slurm, command, tmp_path):
    resources = ("slurm_partition=main", "mem_mb=2000", "runtime=30")
    options = ("--slurm-init-seconds-before-status-checks", "5", "--default-resources", *resources)
    config = f"device=cpu command={command}"
    done = snakemake(tmp_path, "--until", "results", *options, profile="slurm", config=config, **slurm)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("submitted with SLURM jobid") > 10
    assert manifests(tmp_path / "artifacts") == by_papermill
    check_receipts(tmp_path / "artifacts")


def test_a_worker_that_dies_is_tried_again(tmp_path):
    """The first call of every task kills itself; the engine's second one does the work."""
    wrapper = tmp_path / "dies-once"
    wrapper.write_text(
        """#!/bin/sh
case "$*" in *--task*)
    mark="$DEEPNEIGHBORS_ARTIFACTS/$(echo "$*" | cksum | cut -d' ' -f1)"
    [ -e "$mark" ] || { mkdir -p "$DEEPNEIGHBORS_ARTIFACTS"; echo > "$mark"; kill -9 $$; } ;;
esac
exec deepneighbors "$@"
"""
    )
    wrapper.chmod(0o755)
    done = snakemake(tmp_path, "-c", "1", "--until", "evasion_points", config=f"device=cpu command={wrapper}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Trying to restart job") == 1
    (receipt,) = (tmp_path / "artifacts" / "receipts").rglob("*.json")
    assert "evasion_points" in receipt.parts


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_plans_all_jobs(profile, tmp_path):
    """Nothing is submitted; a key that Snakemake does not know, or an executor that is not there, would stop it."""
    settings = yaml.safe_load((ROOT / "workflow" / "profiles" / profile / "config.yaml").read_text())
    if settings.get("executor") == "kubernetes":
        pytest.importorskip("snakemake_executor_plugin_kubernetes")
        pytest.importorskip("snakemake_storage_plugin_fs")
    done = snakemake(tmp_path, "-n", "-c", "2", "--until", "results", profile=profile)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = len(plan.tasks(Run(CHAPTER, profile="smoke", device="cpu"))) + 1
    assert re.search(rf"^total +{jobs}$", done.stdout + done.stderr, re.MULTILINE)
