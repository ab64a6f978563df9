"""The store: keys, resumption after SIGKILL, damage, two processes, a full disk."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepneighbors import _allocator, _artifact_files
from deepneighbors.errors import InputError
from deepneighbors.store import Context, Payload, Store, StoreError, stage

CALLS: list[str] = []


@stage("numbers")
def numbers(config, inputs, context):
    CALLS.append("numbers")
    whole = torch.arange(config["n"], dtype=torch.float32).reshape(2, -1)
    return Payload({"whole": whole, "turned": whole.T, "row": whole[0]}, {"n": config["n"]})


@stage("total")
def total(config, inputs, context):
    CALLS.append("total")
    scaled = [config["scale"] * artifact.tensors["whole"].sum() for artifact in inputs]
    return Payload(values={"total": sum(scaled), "device": context.device})


@pytest.fixture
def store(tmp_path):
    CALLS.clear()
    return Store(tmp_path)


def _chain(n=6, scale=2):
    upstream = numbers.node({"n": n})
    return upstream, total.node({"scale": scale}, [upstream])


def test_nothing_runs_before_get_and_everything_once(store):
    upstream, node = _chain()
    assert CALLS == [] and store.state(node) == "missing"
    assert store.get(node).values["total"] == 30
    assert Store(store.root).get(node).values["total"] == 30  # from the disk
    assert CALLS == ["numbers", "total"]
    assert store.state(node) == store.state(upstream) == "done"


def test_tensors_come_back_exactly(store):
    upstream, _ = _chain()
    tensors = Store(store.root).get(upstream).tensors
    whole = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert torch.equal(tensors["whole"], whole)
    assert torch.equal(tensors["turned"], whole.T)
    assert torch.equal(tensors["row"], whole[0])


def test_tensors_come_back_in_the_order_of_their_names(store):
    names = [f"{letter}{number}" for number in range(9) for letter in "zab"]
    many = stage("many")(lambda config, inputs, context: Payload({name: torch.ones(2) for name in names}))
    assert list(store.get(many.node({})).tensors) == sorted(names)


def test_manifest_says_what_made_it(store):
    upstream, node = _chain()
    manifest = store.get(node, Context(device="cpu")).manifest
    assert manifest["stage"] == "total" and manifest["key"] == node.key
    assert manifest["config"] == {"scale": 2} and manifest["inputs"] == [upstream.key]
    assert manifest["torch"] == torch.__version__ and manifest["device"] == "cpu"
    assert manifest["seconds"] >= 0 and manifest["code"] == total.fingerprint
    assert manifest["files"]["values.json"]["bytes"] == (store.folder(node) / "values.json").stat().st_size


def test_key_depends_on_config_inputs_and_code_only(monkeypatch):
    _, node = _chain()
    assert len(node.key) == 16 and int(node.key, 16) >= 0
    assert _chain()[1].key == node.key
    assert len({node.key, _chain(n=8)[1].key, _chain(scale=3)[1].key, total.node({"scale": 2}).key}) == 4
    a, b = numbers.node({"n": 6, "a": (1, 2)}), numbers.node({"a": [1, 2], "n": 6})
    assert a.key == b.key
    monkeypatch.setitem(total.__dict__, "fingerprint", "another")
    assert _chain()[1].key != node.key


def test_walk_goes_upstream_first_and_once(store):
    upstream, node = _chain()
    other = total.node({"scale": 5}, [upstream, node])
    assert [n.key for n in store.walk(other, node)] == [upstream.key, node.key, other.key]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("file", ["tensors.safetensors", "values.json", "manifest.json"])
def test_damage_is_noticed_and_computed_again(store, spoil, file, caplog):
    upstream, _ = _chain()
    store.get(upstream)
    spoil(store.folder(upstream) / file)
    fresh = Store(store.root)
    assert fresh.state(upstream) == "damaged"
    assert torch.equal(fresh.get(upstream).tensors["row"], torch.arange(3.0))
    assert CALLS == ["numbers", "numbers"] and "damaged" in caplog.text
    assert fresh.state(upstream) == "done"


def test_another_keys_files_are_damage(store):
    one, two = numbers.node({"n": 4}), numbers.node({"n": 6})
    store.get(one)
    store.folder(one).rename(store.folder(two))
    assert store.state(two) == "damaged"
    assert store.get(two).values == {"n": 6}


def test_changes_to_what_get_returned_do_not_reach_the_next(store):
    upstream, _ = _chain()
    first = store.get(upstream)
    first.tensors["whole"].zero_()
    first.values["n"] = -1
    first.tensors["more"] = torch.ones(1)
    second = store.get(upstream)
    assert second.tensors["whole"].sum() == 15 and second.values == {"n": 6}
    assert "more" not in second.tensors and CALLS == ["numbers"]


def test_memory_is_bounded_and_saves_reading(store, monkeypatch):
    reads = []
    read = _artifact_files.read
    monkeypatch.setattr(_artifact_files, "read", lambda folder, key: reads.append(key) or read(folder, key))
    small, large = numbers.node({"n": 4}), numbers.node({"n": 400})
    for node in (small, large):
        store.get(node)
    limited = Store(store.root, memory=1000)
    reads.clear()
    for node in (small, small, large, large, small):
        limited.get(node)
    assert reads == [small.key, large.key, large.key, small.key]


def test_inference_mode_does_not_matter(store):
    upstream, node = _chain()
    with torch.inference_mode():
        assert store.get(node).values["total"] == store.get(node).values["total"] == 30


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_gives_one_sentence_and_a_sound_store(store, monkeypatch, number):
    upstream, node = _chain()
    store.get(upstream)
    write = _artifact_files._write_file

    def fail(path, data):
        if path.name == "manifest.json":
            raise OSError(number, os.strerror(number))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(_artifact_files, "_write_file", fail)
        with pytest.raises(StoreError, match="full|cannot be written") as caught:
            store.get(node)
    assert ("full" in str(caught.value)) == (number == errno.ENOSPC) and "\n" not in str(caught.value)
    assert list(store.root.rglob(".tmp-*")) == []
    assert (store.state(upstream), store.state(node)) == ("done", "missing")
    assert store.get(node).values["total"] == 30


def test_a_store_in_the_place_of_a_file_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file").get(_chain()[0])


def test_bad_configs_and_names_are_refused():
    with pytest.raises(InputError, match="config of stage 'numbers'"):
        numbers.node({"n": torch.ones(1)})
    with pytest.raises(InputError, match="JSON"):
        numbers.node({"n": float("nan")})
    with pytest.raises(InputError, match="'No/Name'"):
        stage("No/Name")


def test_a_stage_that_fails_leaves_nothing(store):
    with pytest.raises(KeyError):
        store.get(numbers.node({"m": 6}))
    assert [path for path in store.root.rglob("*") if path.is_file() and ".lock-" not in path.name] == []


SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from deepneighbors import _artifact_files
from deepneighbors.store import Payload, Store, stage

folder, mode = Path(sys.argv[1]), sys.argv[2]

def say(text):
    with open(folder / "log", "a") as file:
        print(text, file=file)

@stage("first")
def first(config, inputs, context):
    say("first")
    time.sleep(1 if mode == "slow" else 0)
    return Payload({"x": torch.ones(1000)})

@stage("second")
def second(config, inputs, context):
    say("second")
    time.sleep(60 if mode == "hang" else 0)
    return Payload({"x": inputs[0].tensors["x"] + 1})

if mode == "hang writing":
    write = _artifact_files._write_file
    def write_half(path, data):
        write(path, data[: len(data) // 2])
        if "second" in path.parts:
            say("writing")
            time.sleep(60)
    def write_file(path, data):
        (write_half if "second" in path.parts else write)(path, data)
    _artifact_files._write_file = write_file

node = second.node({}, [first.node({})])
print(float(Store(folder / "store").get(node).tensors["x"].sum()))
"""


def _start(folder, mode):
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _log(folder):
    return (folder / "log").read_text().split("\n")[:-1] if (folder / "log").exists() else []


def _kill_at(folder, mode, line):
    with _start(folder, mode) as process:
        deadline = time.monotonic() + 60
        while line not in _log(folder):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_resumes_at_the_last_finished_stage(tmp_path):
    _kill_at(tmp_path, "hang", "second")
    with _start(tmp_path, "run") as process:
        assert process.communicate(timeout=60)[0] == "2000.0\n"
    assert _log(tmp_path) == ["first", "second", "second"]


def test_what_a_kill_left_half_written_is_never_used_and_goes_away(tmp_path):
    _kill_at(tmp_path, "hang writing", "writing")
    (leftover,) = (tmp_path / "store" / "second").glob(".tmp-*")
    assert any(leftover.iterdir())
    with _start(tmp_path, "run") as process:
        assert process.communicate(timeout=60)[0] == "2000.0\n"
    assert _log(tmp_path) == ["first", "second", "writing", "second"]
    assert not leftover.exists()


def test_leftovers_of_other_keys_go_but_not_those_of_live_runs(store):
    import filelock

    node, _ = _chain()
    folder = store.folder(node).parent
    for key in ("0" * 16, "1" * 16):
        (folder / f".tmp-{key}-x").mkdir(parents=True)
    with filelock.FileLock(folder / f".lock-{'1' * 16}"):
        store.get(node)
    assert [path.name for path in folder.glob(".tmp-*")] == [f".tmp-{'1' * 16}-x"]


def test_two_processes_compute_once(tmp_path):
    with _start(tmp_path, "slow") as one, _start(tmp_path, "slow") as two:
        answers = [process.communicate(timeout=60)[0] for process in (one, two)]
    assert answers == ["2000.0\n", "2000.0\n"]
    assert sorted(_log(tmp_path)) == ["first", "second"]


def test_values_hold_plain_json(store):
    _, node = _chain()
    store.get(node)
    values = json.loads((store.folder(node) / "values.json").read_text())
    assert values == {"total": 30.0, "device": "cpu"}


def test_freed_memory_is_kept_on_glibc_and_nothing_is_done_elsewhere(monkeypatch):
    ask = _allocator.keep_freed_memory.__wrapped__  # past the cache
    assert ask() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(_allocator.platform, "libc_ver", lambda: ("", ""))
    assert ask() is False
