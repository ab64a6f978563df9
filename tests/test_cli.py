"""The command line on a stand-in chapter: what it prints where, its sentences and its exit statuses."""

import errno
import io
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest

import deepneighbors
from deepneighbors import _artifact_files, cli, doctor, paths, provenance, results
from deepneighbors.errors import InputError
from deepneighbors.results import Result, mean_row
from deepneighbors.store import Context, Payload, Store, stage


@stage("sample")
def sample(config, inputs, context):
    return Payload(values={"sample": [1.0, 2.0, 4.0][: config["n"]]})


class _Mean:
    def nodes(self, run):
        return {"sample": sample.node({"n": run.n or 3})}


@dataclass
class _Run:
    chapter: str
    profile: str
    seed: int
    device: str
    n: int | None
    dataset: str | None = None
    changes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.chapter != "numbers":
            raise InputError(f"chapter is {self.chapter!r}; allowed are numbers")
        if self.changes:
            raise InputError(f"setting is {self.changes[0]!r}; allowed are none")
        self.store, self.context = Store(paths.artifacts()), Context(device=self.device)

    def of(self, experiment):
        return self


def _compute(run, name):
    (node,) = _Mean().nodes(run).values()
    values = run.store.get(node, run.context).values["sample"]
    table = results.table([mean_row(values, metric="mean_l2", experiment=name, seed=run.seed)])
    result = Result(name, table)
    result.save(paths.artifacts() / "results" / run.profile / run.chapter)
    return result


@pytest.fixture(autouse=True)
def chapter(monkeypatch, tmp_path):
    stand_in = types.ModuleType("deepneighbors.experiments")
    numbers = types.SimpleNamespace(experiments={"mean": _Mean(), "again": _Mean()})
    vars(stand_in).update(CHAPTERS={"numbers": numbers}, Run=_Run, compute=_compute)
    monkeypatch.setitem(sys.modules, "deepneighbors.experiments", stand_in)
    monkeypatch.setattr(deepneighbors, "experiments", stand_in, raising=False)
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "artifacts"))


def test_run_computes_all_and_results_prints_them(capsys):
    assert cli.main(["run", "numbers", "--profile", "smoke", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    assert out == "mean: 1 rows\nagain: 1 rows\n"
    assert "sample" in err and "done in" in err  # progress
    assert cli.main(["results", "--profile", "smoke"]) == 0
    table = results.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table["experiment"]) == ["again", "mean"]
    assert set(table["seed"]) == {7} and set(table["value"]) == {2.33333}


def test_run_of_one_experiment_with_fewer_images(capsys):
    assert cli.main(["run", "numbers", "--profile", "smoke", "--experiment", "again", "--n", "2"]) == 0
    assert capsys.readouterr().out == "again: 1 rows\n"
    cli.main(["results", "--profile", "smoke"])
    table = results.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table["value"]) == [1.5] and list(table["n"]) == [2]


def test_results_that_were_not_run_are_a_header_and_a_hint(capsys):
    assert cli.main(["results", "--profile", "smoke"]) == 0
    out, err = capsys.readouterr()
    assert out == ",".join(results.COLUMNS) + "\n"
    assert "deepneighbors run CHAPTER --profile smoke" in err


def _status(capsys, *arguments):
    assert cli.main(["status", "--profile", "smoke", *arguments]) == 0
    rows = [line.rsplit(None, 5) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["experiment", "stages", "done", "missing", "damaged", "MB"]
    return {row[0]: [int(cell) for cell in row[1:5]] for row in rows[1:]}


def test_status_counts_done_missing_and_damaged(capsys, tmp_path):
    assert _status(capsys)["numbers/mean"] == [1, 0, 1, 0]
    cli.main(["run", "numbers", "--profile", "smoke"])
    capsys.readouterr()
    done = _status(capsys)
    assert done["numbers/mean"] == done["numbers/again"] == done["all, each stage once"] == [1, 1, 0, 0]
    assert _status(capsys, "--n", "2")["numbers/mean"] == [1, 0, 1, 0]
    (values,) = tmp_path.rglob("values.json")
    values.write_text("{}")
    assert _status(capsys)["all, each stage once"] == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "letters"], "'letters'; allowed are numbers"),
        (["run", "numbers", "--experiment", "median"], "'median'; allowed in numbers are mean, again"),
        (["run", "numbers", "--set", "speed=2"], "setting is 'speed=2'; allowed are none"),
        (["results", "--profile", "huge"], "'huge'; allowed are smoke, quick, full"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(capsys, arguments, words):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [([], "COMMAND"), (["run"], "chapter"), (["run", "numbers", "--seed", "x"], "'x'"), (["fly"], "'fly'")],
)
def test_bad_arguments_are_one_sentence_and_status_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and words in err and err.count("\n") == 1


def test_a_full_disk_is_one_sentence_and_status_2(capsys, monkeypatch):
    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_artifact_files, "_write_file", fail)
    assert cli.main(["run", "numbers"]) == 2
    assert "is full" in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(run, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(deepneighbors.experiments, "compute", interrupt)
    assert cli.main(["run", "numbers"]) == 130
    assert "same command" in capsys.readouterr().err


def test_doctor_passes_here_and_fails_on_missing_data(capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10**11))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "60000 + 10000 images, checked" in out and "100.0 GB free" in out and "MISSING" not in out

    def refuse(name):
        raise InputError("the file is damaged; restore it")

    monkeypatch.setattr("deepneighbors.data.load", refuse)
    assert cli.main(["doctor"]) == 1
    assert "-> the file is damaged; restore it" in capsys.readouterr().out


def test_doctor_names_an_old_torch_and_a_full_disk(capsys, monkeypatch):
    monkeypatch.setattr(provenance, "version", lambda name: "2.9.1+cpu" if name == "torch" else "1.0")
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10**8))
    problems = {check.name: check.remedy for check in doctor.examine() if check.state == "MISSING"}
    assert problems.keys() == {"torch", "store"}
    assert "2.11" in problems["torch"] and "DEEPNEIGHBORS_ARTIFACTS" in problems["store"]


def test_book_passes_its_profile_on(capsys, monkeypatch, tmp_path):
    stand_in = types.ModuleType("deepneighbors.book")
    stand_in.BookError = stand_in.GateError = RuntimeError
    asked = []
    stand_in.make = lambda *, profile: asked.append(profile) or tmp_path / "index.html"
    monkeypatch.setitem(sys.modules, "deepneighbors.book", stand_in)
    monkeypatch.setattr(deepneighbors, "book", stand_in, raising=False)
    assert cli.main(["book", "--profile", "smoke"]) == 0
    assert asked == ["smoke"] and (tmp_path / "index.html").as_uri() in capsys.readouterr().out

    def fail(*, profile):
        raise RuntimeError("chapter 1 has no output")

    stand_in.make = fail
    assert cli.main(["book"]) == 1
    assert capsys.readouterr().err == "chapter 1 has no output\n"


def test_version_answers_without_torch():
    code = "import sys\nfrom deepneighbors.cli import main\n"
    code += "try: main(['--version'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "deepneighbors 0.1.0\nFalse\n"


def test_a_closed_pipe_is_no_traceback():
    command = [sys.executable, "-m", "deepneighbors.cli", "results", "--profile", "smoke"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert "Traceback" not in err and "BrokenPipe" not in err
