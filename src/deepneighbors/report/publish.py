"""From an executed notebook to a chapter: figures become files, traces of the machine go."""

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from deepneighbors import paths
from deepneighbors._files import write_file
from deepneighbors.report import figures, notebook

KEY = "deepneighbors"  # in the metadata of a published notebook: its stamp and the records of its results
_TIMING = ("papermill", "execution", "ExecuteTime", "duration", "start_time", "end_time")
_CELL_FILE = re.compile(r"\S*[/\\]ipykernel_\d+[/\\]\d+\.py")


def publish(nb: NotebookNode, target: Path, *, stamp: str, repository: str = "") -> None:
    """Write an executed notebook as chapter ``target``, its figures under ``figures/`` beside it.

    The notebook is written last, under another name first, so that a stop leaves the old chapter whole. With
    the address of a GitHub ``repository`` (``.../owner/name/blob/branch``) a badge below the title opens the
    source in Colab.
    """
    records = result_records(nb)
    if repository:
        _add_badge(nb, repository.replace("://github.com", "://colab.research.google.com/github"), target.name)
    for cell in nb.cells:
        _clean_cell(cell)
        if cell.cell_type == "code":
            outputs = [_published(output, target) for output in cell.outputs]
            cell.outputs = [output for output in outputs if output is not None]
    nb.metadata = {key: nb.metadata[key] for key in ("kernelspec", "language_info") if key in nb.metadata}
    nb.metadata[KEY] = {"stamp": stamp, "results": records}
    text = nbformat.writes(nbformat.from_dict(_without_machine(nb)))
    write_file(target, text.encode())


def result_records(nb: NotebookNode) -> list[dict[str, Any]]:
    """Records of the results that a notebook shows, published or not."""
    kept = nb.metadata.get(KEY, {}).get("results", [])
    found = [
        output.data[notebook.MIME]
        for cell in nb.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if notebook.MIME in output.get("data", {})
    ]
    unique = {str(sorted(record.items())): dict(record) for record in [*kept, *found]}
    return list(unique.values())


def read_notebook(path: Path) -> NotebookNode:
    """A notebook of format 4; ValueError for anything else."""
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except (OSError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return nb


def read_stamp(path: Path) -> str:
    """Stamp of a published chapter; empty where there is none or it cannot be read."""
    try:
        return str(read_notebook(path).metadata.get(KEY, {}).get("stamp", ""))
    except ValueError:
        return ""


def _add_badge(nb: NotebookNode, colab: str, name: str) -> None:
    title = next((cell for cell in nb.cells if cell.cell_type == "markdown"), None)
    if title is None or "colab.research.google.com" in title.source:
        return
    first, _, rest = title.source.partition("\n")
    badge = f"[![Open the source notebook in Colab](../_static/colab-badge.svg)]({colab}/notebooks/{name})"
    title.source = f"{first}\n\n{badge}\n{rest}"


def _clean_cell(cell: NotebookNode) -> None:
    for key in _TIMING:
        cell.metadata.pop(key, None)
    if "injected-parameters" in cell.metadata.get("tags", []):
        cell.metadata["tags"] = ["injected-parameters", "remove-cell"]


def _published(output: NotebookNode, target: Path) -> NotebookNode | None:
    """What stays of an output: no log, no record; a figure as MyST that refers to its files."""
    data = output.get("data", {})
    if output.get("name") == "stderr" or notebook.MIME in data:
        return None
    if figures.MIME in data:
        record = data.pop(figures.MIME)
        png = base64.b64decode(data.pop("image/png"))
        output.metadata = {}
        stem = f"figures/{target.stem.replace('_', '-')}-{record['name']}"
        _write_images(record, png, target.parent / stem)
        data["text/markdown"] = figures.page_markdown(record, stem)
    return output


def _write_images(record: dict[str, str], png: bytes, stem: Path) -> None:
    for suffix, content in (
        ("-light.svg", record["light"].encode()),
        ("-dark.svg", record["dark"].encode()),
        (".png", png),
    ):
        write_file(stem.with_name(stem.name + suffix), content)


def _without_machine(value: Any) -> Any:
    """The same value with the folders of this machine taken out of every string."""
    if isinstance(value, dict):
        return {key: _without_machine(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_machine(part) for part in value]
    if not isinstance(value, str):
        return value
    if "ipykernel_" in value:  # the pattern is slow on a long text without spaces, such as an image
        value = _CELL_FILE.sub("<cell>", value)
    for folder, short in ((str(paths.ROOT), "."), (str(Path.home()), "~")):
        value = value.replace(f"{folder}/", f"{short}/").replace(folder, short) if len(folder) > 1 else value
    return value
