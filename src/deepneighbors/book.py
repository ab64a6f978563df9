"""Make the book: execute the notebooks that changed, pass the gate, build the HTML.

A notebook is executed again only when something that can change its page did: its source, the package, the
profile, the recorded results. It runs to a temporary place; the chapter of the last good run stays until the
new one has passed.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat
import yaml

from deepneighbors import checks, paths, profiles
from deepneighbors._files import write_file
from deepneighbors.errors import InputError
from deepneighbors.fingerprint import fingerprint
from deepneighbors.report import findings, publish
from deepneighbors.report.gate import GateError, gate

__all__ = ["Book", "BookError", "GateError", "execute", "gate", "make", "main", "sync"]

logger = logging.getLogger(__name__)
SUMMARY = "scorecard"  # the notebook that reads the results of all others, so it runs last
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"  # the command of this very environment
_KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # progress belongs in the log
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the user's that has the same name
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class BookError(RuntimeError):
    """The book could not be made; the message says what failed and what is kept."""


def make(profile: str = "quick", *, root: Path | None = None) -> Path:
    """Execute what changed, check all chapters, build the HTML; returns the path of ``index.html``.

    Raises
    ------
    InputError
        Unknown profile.
    GateError, BookError
        A notebook failed or must not become a page, or the build gave a warning.
    """
    execute(None, profile, root=root)
    book = Book(root or paths.ROOT)
    book.write_findings(profile)
    return book.build()


def execute(names: Iterable[str] | None, profile: str, *, root: Path | None = None) -> list[Path]:
    """Execute the notebooks of these names that changed, or all; returns the chapters. No HTML is built.

    Raises
    ------
    InputError
        Unknown profile or notebook.
    GateError, BookError
        A notebook failed or must not become a page.
    """
    checks.one_of("profile", profile, profiles.PROFILES)
    book = Book(root or paths.ROOT)
    sources = {source.stem: source for source in book.sources()}
    wanted = list(sources) if names is None else list(names)
    for name in wanted:
        checks.one_of("notebook", name, sources)
    for name in wanted:
        book.execute(sources[name], profile)
    return [book.chapters / f"{name}.ipynb" for name in wanted]


def sync(root: Path | None = None) -> list[Path]:
    """Write the paired ``.ipynb`` of each notebook, without outputs; returns those that changed."""
    changed = []
    for source in Book(root or paths.ROOT).sources():
        paired, text = source.with_suffix(".ipynb"), paired_text(source)
        if not paired.is_file() or paired.read_text() != text:
            write_file(paired, text.encode())
            changed.append(paired)
    return changed


def paired_text(source: Path) -> str:
    """The ``.ipynb`` of a percent notebook as text, always the same: no outputs, cells named by position."""
    nb = jupytext.read(source)
    nb.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nb.metadata["language_info"] = {"name": "python"}
    nb.nbformat, nb.nbformat_minor = 4, 5
    for position, cell in enumerate(nb.cells):
        cell.id = f"cell-{position:03d}"
    return nbformat.writes(nbformat.from_dict(nb)) + "\n"


@dataclass(frozen=True)
class Book:
    """The book in the repository ``root``: ``notebooks/`` -> ``book/chapters/`` -> ``_build/html/``."""

    root: Path
    chapters: Path = field(init=False)
    html: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chapters", self.root / "book" / "chapters")
        object.__setattr__(self, "html", self.root / "_build" / "html")

    def sources(self) -> list[Path]:
        """The notebooks' sources in the order of execution."""
        return sorted((self.root / "notebooks").glob("*.py"), key=lambda path: (path.stem == SUMMARY, path.stem))

    def repository(self) -> str:
        """Address of the files on GitHub, from ``_config.yml``; empty where it names none."""
        config = self.root / "_config.yml"
        found = (yaml.safe_load(config.read_text()) or {}).get("repository", {}) if config.is_file() else {}
        return f"{found['url'].rstrip('/')}/blob/{found.get('branch', 'main')}" if "url" in found else ""

    def stamp(self, source: Path, profile: str) -> str:
        """Hash of all that can change the page of a notebook."""
        package = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".csv", ".json", ".mplstyle")]
        results = [path for path in (self.root / "results").rglob("*") if path.is_file()]
        if source.stem == SUMMARY:
            results += (findings.folder(profile)).rglob("*.csv")
        code = fingerprint(["deepneighbors"])
        return hash_of([source, *package, *results], profile, code, self.repository())

    def execute(self, source: Path, profile: str) -> bool:
        """Execute a notebook and publish its chapter, unless nothing changed; says whether it ran."""
        target = self.chapters / f"{source.stem}.ipynb"
        stamp = self.stamp(source, profile)
        if publish.read_stamp(target) == stamp and _passes(target) and findings.complete(target):
            logger.info("%s: nothing changed", source.stem)
            return False
        logger.info("%s: executing at the %s profile", source.stem, profile)
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / target.name
            try:
                self._run(source, executed, profile)
                gate(executed)
            except (BookError, GateError) as error:
                raise type(error)(f"{error}{self._keep_failed(executed, target)}") from error
            # The notebook's own run may have added recorded results, which count for the stamp.
            nb, stamp = publish.read_notebook(executed), self.stamp(source, profile)
            publish.publish(nb, target, stamp=stamp, repository=self.repository())
        gate(target)
        return True

    def _run(self, source: Path, executed: Path, profile: str) -> None:
        import papermill

        paired = executed.with_name(f"source-{executed.name}")
        paired.write_text(paired_text(source))
        log = paths.artifacts() / "logs" / f"{source.stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with _environment({**_KERNEL_ENVIRONMENT, "DEEPNEIGHBORS_LOG": str(log)}), _relayed(log):
            try:
                papermill.execute_notebook(
                    str(paired),
                    str(executed),
                    parameters={"profile": profile},
                    kernel_name="python3",
                    cwd=str(self.root),
                    progress_bar=sys.stderr.isatty(),
                )
            except papermill.PapermillExecutionError as error:
                first = next((line for line in (error.source or "").splitlines() if line.strip()), "")
                message = f"the cell that begins {first[:60]!r} ended with {error.ename}: {error.evalue}"
                raise BookError(f"{source.name}: {message}") from error
            except RuntimeError as error:  # the kernel died
                raise BookError(f"{source.name}: {error}") from error

    def _keep_failed(self, executed: Path, target: Path) -> str:
        kept = self.root / "_build" / "failed" / target.name
        if not executed.is_file():
            return ""
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(executed, kept)
        return f" (see {kept}; the chapter of the last good run is kept)" if target.is_file() else f" (see {kept})"

    def write_findings(self, profile: str) -> None:
        """Write the table of findings that the front page includes."""
        path, text = self.chapters / "findings.md", findings.fragment(profile).encode()
        if not path.is_file() or path.read_bytes() != text:
            write_file(path, text)

    def build(self) -> Path:
        """Check each chapter and build the HTML, unless nothing changed; returns ``index.html``."""
        for chapter in sorted(self.chapters.glob("*.ipynb")):
            gate(chapter)
        index, kept = self.html / "index.html", self.html.with_name("html.stamp")
        stamp = self._build_stamp()
        if index.is_file() and kept.is_file() and kept.read_text() == stamp:
            logger.info("HTML: nothing changed")
            return index
        self._build_html()
        write_file(kept, stamp.encode())
        return index

    def _build_stamp(self) -> str:
        files = [self.root / "_config.yml", self.root / "_toc.yml", *(self.root / "book").rglob("*")]
        files += Path(__file__).parent.rglob("*.py")  # the API reference shows their docstrings
        return hash_of(path for path in files if path.is_file() and "__pycache__" not in path.parts)

    def _build_html(self) -> None:
        """Build beside the old HTML and swap: Sphinx says nothing of a page that it does not read again."""
        logger.info("HTML: building")
        work = self.root / "_build" / "next"
        shutil.rmtree(work, ignore_errors=True)
        command = [sys.executable, "-c", _JUPYTER_BOOK, "build", str(self.root), "--path-output", str(work)]
        done = subprocess.run(
            [*command, "-W", "-n", "--keep-going", "-q"],
            cwd=self.root,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        built = work / "_build" / "html"
        if done.returncode != 0 or not (built / "index.html").is_file():
            raise BookError(f"jupyter-book ended with {done.returncode} and its output is not used\n{done.stdout[-3000:]}")
        shutil.rmtree(self.html, ignore_errors=True)
        os.replace(built, self.html)
        shutil.rmtree(work)


def hash_of(files: Iterable[Path], *texts: str) -> str:
    """SHA-256 of texts and of the names and contents of files, in an order of its own."""
    digest = hashlib.sha256("\n".join(texts).encode())
    for path in sorted(set(files)):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _passes(target: Path) -> bool:
    try:
        gate(target)
    except GateError as error:
        logger.info("%s", error)
        return False
    return True


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that the kernel inherits, put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _relayed(path: Path) -> Iterator[None]:
    """Pass on what a running notebook writes to its log, so that a long stage is seen to move."""
    path.touch()
    stop = threading.Event()

    def relay() -> None:
        with path.open() as stream:
            stream.seek(0, os.SEEK_END)
            while True:
                last = stop.wait(0.5)
                for line in stream:
                    logger.info("  %s", line.rstrip())
                if last:
                    return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main(arguments: list[str] | None = None) -> int:
    """``python -m deepneighbors.book``: make the book, or with ``--sync`` write the paired notebooks."""
    parser = argparse.ArgumentParser(prog="python -m deepneighbors.book", description=main.__doc__)
    parser.add_argument("--profile", default="quick", help=f"one of {', '.join(profiles.PROFILES)}")
    parser.add_argument("--sync", action="store_true", help="write notebooks/*.ipynb from notebooks/*.py and stop")
    options = parser.parse_args(arguments)
    if not logging.getLogger("deepneighbors").handlers:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        logging.getLogger("deepneighbors").setLevel(logging.INFO)
    try:
        if options.sync:
            print("\n".join(map(str, sync())) or "all notebooks are in step")
            return 0
        index = make(options.profile)
    except (InputError, GateError, BookError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The book is made. Open {index.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
