"""The gate that a notebook passes before it becomes a page; Sphinx alone lets a stored traceback through."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from deepneighbors.report import figures, notebook, publish

Current = Callable[[str, str, str], str]
_DIRECTIVE = re.compile(r"^[`~]{3,}\{(table|figure)\}", re.MULTILINE)
_FIGURE = re.compile(r"^[`~]{3,}\{(?:figure|image)\} (?P<file>\S+)\n(?P<options>(?::.*\n)*)", re.MULTILINE)
_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\(")
_HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)


class GateError(RuntimeError):
    """A notebook that must not become a page; the message is a sentence that names the cell."""


def gate(path: Path | str, *, current: Current | None = None) -> None:
    """Refuse an executed notebook, published or not, that a reader could not trust.

    Each code cell must have run, in order, without error; the page must show a table or a figure; each image
    needs alt text and each label is used once; the code that computed each result must be the present code. A
    recorded result of the full profile may be older if the page marks it so.

    Parameters
    ----------
    current
        Gives the present fingerprint for (chapter, experiment, profile); the library's own unless given.

    Raises
    ------
    GateError
        The first thing that is wrong.
    """
    path = Path(path)
    try:
        nb = publish.read_notebook(path)
    except ValueError as error:
        raise GateError(f"{path.name} cannot be read as a notebook: {error}") from error
    for problem in _problems(nb, path, current or notebook.current_fingerprint):
        raise GateError(f"{path.name}: {problem}")


def _problems(nb: NotebookNode, path: Path, current: Current) -> Iterator[str]:
    yield from _execution(nb)
    yield from _substance(nb)
    yield from _images(nb, path)
    yield from _labels(nb)
    yield from _stale(nb, current)


def _code(nb: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """Code cells with their position in the notebook; an empty one is never run and does not count."""
    return ((i, cell) for i, cell in enumerate(nb.cells, 1) if cell.cell_type == "code" and cell.source.strip())


def _execution(nb: NotebookNode) -> Iterator[str]:
    for expected, (position, cell) in enumerate(_code(nb), 1):
        where = _name(position, cell)
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{where} ended with {output.ename}: {output.evalue}"
        if cell.execution_count is None:
            yield f"{where} was not run"
        elif cell.execution_count != expected:
            yield f"{where} ran as number {cell.execution_count} where {expected} was due"


def _substance(nb: NotebookNode) -> Iterator[str]:
    outputs = [output for _, cell in _code(nb) for output in cell.outputs if notebook.MIME not in output.get("data", {})]
    if not outputs:
        yield "no cell has an output"
    elif not any(_shows_something(output.get("data", {})) for output in outputs):
        yield "no cell shows a table or a figure"


def _shows_something(data: dict[str, Any]) -> bool:
    markdown, html = data.get("text/markdown", ""), data.get("text/html", "")
    return bool(_DIRECTIVE.search(markdown)) or "<table" in html or any(key.startswith("image/") for key in data)


def _images(nb: NotebookNode, path: Path) -> Iterator[str]:
    for position, cell in enumerate(nb.cells, 1):
        where = _name(position, cell)
        texts = [cell.source] if cell.cell_type == "markdown" else []
        for output in cell.get("outputs", []):
            texts += [output.get("data", {}).get(kind, "") for kind in ("text/markdown", "text/html")]
            yield from (f"{where} {problem}" for problem in _raw_images(output))
        for text in texts:
            yield from (f"{where} {problem}" for problem in _text_images(text, path.parent))


def _raw_images(output: NotebookNode) -> Iterator[str]:
    data, metadata = output.get("data", {}), output.get("metadata", {})
    if figures.MIME in data and not str(data[figures.MIME].get("alt", "")).strip():
        yield f"shows figure {data[figures.MIME].get('name')!r} without alt text"
    for kind in data:
        if kind.startswith("image/") and not metadata.get(kind, {}).get("alt", "").strip():
            yield f"shows an image ({kind}) without alt text"


def _text_images(text: str, folder: Path) -> Iterator[str]:
    for match in _FIGURE.finditer(text):
        alt = re.search(r"^:alt:[ \t]*(.*)$", match["options"], re.MULTILINE)
        if not alt or not alt[1].strip().strip("\"'").strip():
            yield f"shows {match['file']} without alt text"
        if "://" not in match["file"] and not (folder / match["file"]).is_file():
            yield f"shows {match['file']}, which does not exist"
    if any(not match["alt"].strip() for match in _IMAGE.finditer(text)):
        yield "shows an image without alt text"
    for tag in _HTML_IMAGE.findall(text):
        if not re.search(r"\balt=(\"[^\"]*\S[^\"]*\"|'[^']*\S[^']*')", tag):
            yield "shows an image without alt text"


def _labels(nb: NotebookNode) -> Iterator[str]:
    seen: set[str] = set()
    for position, cell in _code(nb):
        for output in cell.outputs:
            data = output.get("data", {})
            names = re.findall(r"^:name: (\S+)$", data.get("text/markdown", ""), re.MULTILINE)
            names += [data[figures.MIME]["name"]] if figures.MIME in data else []
            for name in names:
                if name in seen:
                    yield f"{_name(position, cell)} uses the label {name!r} a second time"
                seen.add(name)


def _stale(nb: NotebookNode, current: Current) -> Iterator[str]:
    for record in publish.result_records(nb):
        now = current(record["chapter"], record["experiment"], record["profile"])
        marked = record.get("recorded") and record.get("outdated")
        if record["fingerprint"] != now and not marked:
            yield (
                f"the {record['profile']} result {record['experiment']!r} was computed by other code "
                f"({record['fingerprint'][:12]}) than the present one ({now[:12]}); execute it again"
            )


def _name(position: int, cell: NotebookNode) -> str:
    first = next((line for line in cell.source.splitlines() if line.strip()), "")
    return f"cell {position} ({json.dumps(first[:50], ensure_ascii=False)})"
