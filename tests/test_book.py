"""The gate, what publishing keeps, execution that spares the old chapter, and a build with the real configuration."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from deepneighbors import book, paths
from deepneighbors.book import Book, BookError, GateError, gate
from deepneighbors.errors import InputError
from deepneighbors.report import figures, findings, notebook, publish, tables

REPOSITORY = paths.ROOT
RECORD = {
    "chapter": "knn_dknn_attack",
    "experiment": "knn_attack",
    "profile": "smoke",
    "dataset": "mnist",
    "recorded": False,
    "fingerprint": "now",
}


def draw(canvas):
    canvas()[1].plot([0, 1])


def displayed(bundle, metadata=None):
    return new_output("display_data", data=bundle, metadata=metadata or {})


def executed():
    """A notebook as papermill leaves it: a record, a table, a figure, a log, traces of the machine."""
    table = tables.Table(["a"], [["1"]], "A table.", "tab-a")
    picture = figures.picture(draw, name="fig-a", caption="A figure.", alt="A line that rises.")
    log = new_output("stream", name="stderr", text="12 % done")
    where = new_output("stream", name="stdout", text=f"{paths.ROOT}/artifacts in {Path.home()}/x, /tmp/ipykernel_7/1.py:3")
    cells = [
        new_markdown_cell("# Title\n\nText."),
        new_code_cell("profile = 'smoke'", execution_count=1, metadata={"tags": ["injected-parameters"]}),
        new_code_cell("record()", execution_count=2, outputs=[displayed({notebook.MIME: dict(RECORD), "text/html": ""})]),
        new_code_cell("table()", execution_count=3, outputs=[displayed(table._repr_mimebundle_()), log, where]),
        new_code_cell("figure()", execution_count=4, outputs=[displayed(*picture._repr_mimebundle_())]),
        new_code_cell("   "),
    ]
    cells[3].metadata.update(papermill={"duration": 3.1}, execution={"iopub.status.busy": "2026"})
    return new_notebook(
        cells=cells,
        metadata={"papermill": {"input_path": "/home/x"}, "kernelspec": {"name": "python3", "display_name": "P"}},
    )


def written(nb, folder):
    path = folder / "page.ipynb"
    nbformat.write(nb, path)
    return path


def now(chapter, experiment, profile):
    return "now"


def test_a_sound_notebook_passes_before_and_after_publishing(tmp_path):
    path = written(executed(), tmp_path)
    gate(path, current=now)
    publish.publish(nbformat.read(path, as_version=4), tmp_path / "chapters" / "page.ipynb", stamp="s")
    gate(tmp_path / "chapters" / "page.ipynb", current=now)


def traceback(nb):
    nb.cells[3].outputs.append(new_output("error", ename="ValueError", evalue="no such layer", traceback=[]))


def without_outputs(nb):
    for cell in nb.cells[1:]:
        cell.outputs = []


def only_a_record(nb):
    nb.cells[3].outputs = nb.cells[4].outputs = []


def only_text(nb):
    nb.cells[3].outputs = [new_output("stream", name="stdout", text="hello")]
    nb.cells[4].outputs = []


def out_of_order(nb):
    nb.cells[3].execution_count, nb.cells[4].execution_count = 4, 3


def repeated_run(nb):
    nb.cells[4].execution_count = 9


def not_run(nb):
    nb.cells[4].execution_count = None


def stale(nb):
    nb.cells[2].outputs[0].data[notebook.MIME]["fingerprint"] = "before"


def image_without_alt(nb):
    nb.cells[4].outputs = [displayed({"image/png": "iVBORw0KGgo="})]


def figure_without_alt(nb):
    nb.cells[4].outputs[0].data[figures.MIME]["alt"] = " "


def html_image_without_alt(nb):
    nb.cells[4].outputs = [displayed({"text/html": '<img src="x.png" alt="">'})]


def markdown_image_without_alt(nb):
    nb.cells[0].source += "\n![](x.png)"


def same_label(nb):
    nb.cells[4].outputs.append(nb.cells[3].outputs[0])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (traceback, r"cell 4 \(\"table\(\)\"\) ended with ValueError: no such layer"),
        (without_outputs, "no cell has an output"),
        (only_a_record, "no cell has an output"),
        (only_text, "no cell shows a table or a figure"),
        (out_of_order, "cell 4 .* ran as number 4 where 3 was due"),
        (repeated_run, "cell 5 .* ran as number 9 where 4 was due"),
        (not_run, "cell 5 .* was not run"),
        (stale, "the smoke result 'knn_attack' was computed by other code"),
        (image_without_alt, r"cell 5 .* shows an image \(image/png\) without alt text"),
        (figure_without_alt, "cell 5 .* shows figure 'fig-a' without alt text"),
        (html_image_without_alt, "cell 5 .* shows an image without alt text"),
        (markdown_image_without_alt, "cell 1 .* shows an image without alt text"),
        (same_label, "cell 5 .* uses the label 'tab-a' a second time"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_gate_refuses(spoil, sentence, tmp_path):
    nb = executed()
    spoil(nb)
    with pytest.raises(GateError, match=f"page.ipynb: {sentence}"):
        gate(written(nb, tmp_path), current=now)


def test_gate_refuses_a_published_page_without_its_image_or_alt(tmp_path):
    path = tmp_path / "page.ipynb"
    publish.publish(executed(), path, stamp="s")
    path.write_text(path.read_text().replace(':alt: \\"A line that rises.\\"', ':alt: \\"\\"'))
    with pytest.raises(GateError, match="shows figures/page-fig-a-light.svg without alt text"):
        gate(path, current=now)
    publish.publish(executed(), path, stamp="s")
    (tmp_path / "figures" / "page-fig-a-dark.svg").unlink()
    with pytest.raises(GateError, match="shows figures/page-fig-a-dark.svg, which does not exist"):
        gate(path, current=now)


def test_gate_refuses_a_published_page_whose_code_changed(tmp_path):
    path = tmp_path / "page.ipynb"
    publish.publish(executed(), path, stamp="s")
    with pytest.raises(GateError, match=r"computed by other code \(now\) than the present one \(later\)"):
        gate(path, current=lambda *names: "later")


def test_gate_lets_an_older_recorded_result_pass_only_if_the_page_marks_it(tmp_path):
    nb = executed()
    nb.cells[2].outputs[0].data[notebook.MIME] |= {"recorded": True, "fingerprint": "old", "outdated": False}
    with pytest.raises(GateError, match="computed by other code"):
        gate(written(nb, tmp_path), current=now)
    nb.cells[2].outputs[0].data[notebook.MIME]["outdated"] = True
    gate(written(nb, tmp_path), current=now)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}'])
def test_gate_refuses_what_is_no_notebook(text, tmp_path):
    (tmp_path / "page.ipynb").write_text(text)
    with pytest.raises(GateError, match="^page.ipynb"):
        gate(tmp_path / "page.ipynb")


def test_publishing_keeps_no_trace_of_machine_or_time(tmp_path):
    publish.publish(executed(), tmp_path / "page.ipynb", stamp="s", repository="https://github.com/o/r/blob/main")
    text = (tmp_path / "page.ipynb").read_text()
    for trace in (str(paths.ROOT), str(Path.home()) + "/", "ipykernel_7", "/home/x", "duration", "iopub", "12 % done"):
        assert trace not in text
    nb = nbformat.read(tmp_path / "page.ipynb", as_version=4)
    assert "./artifacts in ~/x, <cell>:3" in str(nb.cells[3].outputs)
    assert nb.metadata["deepneighbors"] == {"stamp": "s", "results": [RECORD]}
    assert nb.cells[1].metadata["tags"] == ["injected-parameters", "remove-cell"]
    assert "(https://colab.research.google.com/github/o/r/blob/main/notebooks/page.ipynb)" in nb.cells[0].source


def test_publishing_twice_gives_the_same_bytes(tmp_path):
    nb = executed()
    for name in ("a", "b"):
        publish.publish(nbformat.from_dict(json.loads(nbformat.writes(nb))), tmp_path / name / "page.ipynb", stamp="s")
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


# --- Execution -------------------------------------------------------------------------------------------------

PAGE = """# %% [markdown]
# # A page

# %% tags=["parameters"]
profile = "quick"

# %%
import pandas as pd
from deepneighbors.report import notebook

page, parameters = notebook.start_page(globals())
page.grid(pd.DataFrame({"profile": [parameters["profile"]]}), caption="The profile.", name="tab-profile")

# %%
page.figure(lambda canvas: canvas()[1].plot([0, 1]), caption="A line, $x$.", name="fig-line", alt="A line.")
page.glue("number", 0.25)

# %% [markdown]
# See {numref}`tab-profile`, {numref}`fig-line` and {glue:text}`number:.2f`.
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one notebook and the real configuration."""
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "artifacts"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "page.py").write_text(PAGE)
    shutil.copyfile(REPOSITORY / "_config.yml", tmp_path / "_config.yml")
    for part in ("_ext", "_static"):
        shutil.copytree(REPOSITORY / "book" / part, tmp_path / "book" / part)
    shutil.copyfile(REPOSITORY / "book" / "references.bib", tmp_path / "book" / "references.bib")
    chapters = [{"file": "book/chapters/page"}]
    toc = {"format": "jb-book", "root": "book/index", "chapters": chapters}
    (tmp_path / "_toc.yml").write_text(json.dumps(toc))
    (tmp_path / "book" / "index.md").write_text("# Front\n\n```{include} chapters/findings.md\n```\n")
    return tmp_path


@pytest.fixture
def chapter(root):
    """The executed chapter of the one notebook."""
    Book(root).execute(root / "notebooks" / "page.py", "smoke")
    return root / "book" / "chapters" / "page.ipynb"


def test_a_notebook_runs_at_its_profile_and_only_when_something_changed(root, chapter):
    source = root / "notebooks" / "page.py"
    assert "| smoke |" in chapter.read_text() and "| quick |" not in chapter.read_text()
    before = chapter.stat().st_mtime_ns
    assert not Book(root).execute(source, "smoke")
    assert chapter.stat().st_mtime_ns == before
    stamp = Book(root).stamp(source, "smoke")
    assert Book(root).stamp(source, "quick") != stamp
    (root / "results" / "full").mkdir(parents=True)
    (root / "results" / "full" / "a.csv").write_text("value\n1\n")
    assert Book(root).stamp(source, "smoke") != stamp


def test_one_notebook_can_be_executed_alone(root):
    assert book.execute(["page"], "smoke", root=root) == [root / "book" / "chapters" / "page.ipynb"]
    assert not (root / "_build").exists()
    with pytest.raises(InputError, match="notebook is 'pages'; allowed are page"):
        book.execute(["pages"], "smoke", root=root)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("raise ValueError('broken')", 'page.py: the cell that begins "raise ValueError.* ended with ValueError: broken'),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "page"),
    ],
    ids=["error", "killed kernel"],
)
def test_a_failing_notebook_leaves_the_old_chapter(line, sentence, root, chapter):
    before = {path: path.read_bytes() for path in chapter.parent.rglob("*.*")}
    source = root / "notebooks" / "page.py"
    source.write_text(source.read_text() + f"\n# %%\n{line}\n")
    with pytest.raises((BookError, GateError), match=sentence):
        Book(root).execute(source, "smoke")
    assert {path: path.read_bytes() for path in chapter.parent.rglob("*.*")} == before


def test_a_failing_notebook_is_kept_with_a_traceback_to_read(root, chapter):
    source = root / "notebooks" / "page.py"
    source.write_text(source.read_text() + "\n# %%\ndef inner():\n    raise ValueError('broken')\n\ninner()\n")
    with pytest.raises(BookError, match=r"see .*failed/page.ipynb; the chapter of the last good run is kept"):
        Book(root).execute(source, "smoke")
    nb = nbformat.read(root / "_build" / "failed" / "page.ipynb", as_version=4)
    errors = [output for cell in nb.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    said = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(errors[-1].traceback))
    assert errors[-1].ename == "ValueError" and "raise ValueError('broken')" in said and "inner()" in said


def test_a_parameter_that_the_notebook_does_not_take_stops_papermill(root):
    import papermill

    source, target = root / "page.ipynb", root / "out.ipynb"
    source.write_text(book.paired_text(root / "notebooks" / "page.py"))
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'profil'; this notebook takes profile"):
        papermill.execute_notebook(source, target, parameters={"profil": "full"}, kernel_name="python3", progress_bar=False)


def test_an_unknown_profile_is_refused_before_any_work(root):
    with pytest.raises(InputError, match="profile is 'huge'; allowed are smoke, quick, full"):
        book.make("huge", root=root)
    assert not (root / "book" / "chapters").exists()


def test_the_book_builds_and_a_second_make_does_nothing(root, monkeypatch):
    monkeypatch.setattr(findings, "fragment", lambda profile: "Findings at `smoke`.\n")
    index = book.make("smoke", root=root)
    assert index == root / "_build" / "html" / "index.html" and index.is_file()
    html = (root / "_build" / "html" / "book" / "chapters" / "page.html").read_text()
    assert html.count('<span class="caption-number">Table 1 </span>') == 1
    assert html.count('<span class="caption-number">Fig. 1 </span>') == 1
    for page in ("light", "dark"):
        assert html.count(f'<img alt="A line." class="page-{page} dark-light"') == 1
    assert "0.25" in html and "colab.research.google.com/github" in html
    assert "Findings at" in (root / "_build" / "html" / "book" / "index.html").read_text()

    def never(*arguments, **options):
        raise AssertionError("a second make did some work")

    monkeypatch.setattr(Book, "_run", never)
    monkeypatch.setattr(Book, "_build_html", never)
    assert book.make("smoke", root=root) == index


def test_a_warning_fails_the_build_and_keeps_the_old_html(root, chapter):
    index = root / "_build" / "html" / "index.html"
    index.parent.mkdir(parents=True)
    index.write_text("old")
    (root / "book" / "index.md").write_text("# Front\n\nSee {numref}`no-such-figure`.\n")
    with pytest.raises(BookError, match="jupyter-book ended with 1"):
        Book(root).build()
    assert index.read_text() == "old"


# --- The repository's own notebooks ----------------------------------------------------------------------------

SOURCES = sorted((REPOSITORY / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert [path.stem for path in SOURCES].count("scorecard") == 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_pair_of_a_notebook_is_in_step_and_without_outputs(source):
    pair = source.with_suffix(".ipynb")
    assert pair.is_file(), f"run: python -m deepneighbors.book --sync, which writes {pair.name}"
    assert pair.read_text() == book.paired_text(source), "run: python -m deepneighbors.book --sync"
    cells = nbformat.read(pair, as_version=4).cells
    assert all(not cell.outputs for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_colab_fetches_the_repository_that_the_configuration_names(source):
    url = Book(REPOSITORY).repository().partition("/blob/")[0]
    named = set(re.findall(r"https://github\.com/[\w./-]+", source.read_text()))
    assert named == {url}


def test_sync_writes_what_is_out_of_step(root):
    pair = root / "notebooks" / "page.ipynb"
    assert book.sync(root) == [pair]
    assert book.sync(root) == []
    pair.write_text("{}")
    assert book.sync(root) == [pair]
