"""Each notebook of the book runs at the smoke profile with no other step, and passes the gate."""

import nbformat
import papermill
import pytest

from deepneighbors.paths import ROOT
from deepneighbors.report.gate import gate

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ELSEWHERE = "poisoning_ila"  # the test of the workflow executes this one, and passes it through the gate

pytestmark = pytest.mark.usefixtures("on_few_test_digits")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != ELSEWHERE], ids=lambda path: path.stem)
def test_notebook_runs_and_passes_the_gate(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "artifacts"))
    out = tmp_path / path.name
    papermill.execute_notebook(path, out, parameters={"profile": "smoke"}, progress_bar=False)
    gate(out)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_not_run_where_nothing_is_recorded(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("DEEPNEIGHBORS_RECORDED", str(tmp_path / "recorded"))
    page, out = nbformat.read(path, 4), tmp_path / path.name
    exercises = (place for place, cell in enumerate(page.cells) if "## Exercises" in cell.source)
    page.cells = page.cells[: next(exercises, None)]  # exercises show no results
    nbformat.write(page, tmp_path / "page.ipynb")
    papermill.execute_notebook(tmp_path / "page.ipynb", out, parameters={"profile": "full"}, progress_bar=False)
    assert "not\N{NO-BREAK SPACE}run" in out.read_text() or path.stem == "scorecard"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("knn_dknn_attack", {"profil": "smoke"}, "unknown parameter 'profil'"),
        ("knn_dknn_attack", {"profile": "fast"}, "profile is 'fast'; allowed are smoke, quick, full"),
        ("knn_dknn_attack", {"profile": "smoke", "device": "tpu"}, "device is 'tpu'"),
        ("nnif_detection", {"profile": "smoke", "dataset": "cifar"}, "dataset is 'cifar'; allowed are mnist, cifar10"),
    ],
)
def test_wrong_parameters_are_refused(name, parameters, message, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "artifacts"))
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb", parameters=parameters, progress_bar=False
        )
