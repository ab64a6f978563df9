"""The ``deepneighbors`` command. Results go to stdout, progress and errors to stderr."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn

from deepneighbors.errors import InputError

if TYPE_CHECKING:
    from deepneighbors.experiments import Run

# The commands import what they need, so that --help and --version answer at once.


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0 done, 1 ``doctor`` found something that must be done or the book failed a check, 2 bad
        input or a store that cannot be used, 130 interrupted.
    """
    chosen = _parser().parse_args(arguments)
    from deepneighbors.store import StoreError

    _log_to_stderr()
    try:
        status = chosen.command(chosen)
        sys.stdout.flush()
        return status
    except (InputError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on after the last finished stage.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain again when it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepneighbors", description="Nearest neighbours in deep networks under attack.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('deepneighbors')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="compute the results of a chapter, and print how many rows each has")
    run.add_argument("chapter")
    run.add_argument("--experiment", action="append", metavar="NAME", help="only this one; may be repeated")
    run.add_argument("--dataset", help="one of the chapter's data sets, instead of the profile's")
    run.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    _add_settings(run)
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                     help="another setting than the profile's, like epochs=30; may be repeated")  # fmt: skip
    run.set_defaults(command=_run)

    results = commands.add_parser("results", help="print all tidy results as CSV")
    results.add_argument("--profile", default="full", help="full (default) prints the recorded results")
    results.set_defaults(command=_results)

    status = commands.add_parser("status", help="print which stages are done, missing or damaged")
    _add_settings(status)
    status.set_defaults(command=_status, device="auto")

    doctor = commands.add_parser("doctor", help="check versions, device, data, disk and memory")
    doctor.set_defaults(command=_doctor)

    book = commands.add_parser("book", help="execute the notebooks and build the book")
    book.add_argument("--profile", default="quick", help="smoke, quick (default) or full")
    book.set_defaults(command=_book)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="quick", help="smoke, quick (default) or full")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--n", type=int, help="images to attack, instead of the profile's number")


def _run(chosen: argparse.Namespace) -> int:
    from deepneighbors import experiments

    run = _make_run(chosen, chosen.chapter)
    known = experiments.CHAPTERS[run.chapter].experiments
    names = chosen.experiment or list(known)
    for name in names:
        if name not in known:
            raise InputError(f"experiment is {name!r}; allowed in {run.chapter} are {', '.join(known)}")
    for name in names:
        result = experiments.compute(run, name)
        print(f"{result.name}: {len(result.table)} rows", flush=True)
    return 0


def _results(chosen: argparse.Namespace) -> int:
    from deepneighbors import paths, profiles, results

    if chosen.profile not in profiles.PROFILES:
        raise InputError(f"profile is {chosen.profile!r}; allowed are {', '.join(profiles.PROFILES)}")
    full = chosen.profile == "full"
    table = results.read_all(paths.recorded() if full else paths.artifacts() / "results" / chosen.profile)
    if table.empty:
        hint = f"deepneighbors run CHAPTER --profile {chosen.profile}"
        print(f"No results of the profile {chosen.profile} are here; make some with `{hint}`.", file=sys.stderr)
    sys.stdout.write(results.to_csv(table))
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from deepneighbors import experiments

    rows: list[tuple[str, ...]] = [("experiment", "stages", "done", "missing", "damaged", "MB")]
    states: dict[str, tuple[str, int]] = {}
    for chapter_name, chapter in experiments.CHAPTERS.items():
        run = _make_run(chosen, chapter_name)
        for name, experiment in chapter.experiments.items():
            nodes = list(run.store.walk(*experiment.nodes(run).values()))
            for node in nodes:
                if node.key not in states:  # experiments share stages, and reading one checks every byte
                    states[node.key] = (run.store.state(node), run.store.size(node))
            rows.append((f"{chapter_name}/{name}", *_counts(states[node.key] for node in nodes)))
    rows.append(("all, each stage once", *_counts(states.values())))
    print(_table(rows))
    return 0


def _doctor(chosen: argparse.Namespace) -> int:
    from deepneighbors import doctor

    checks = list(doctor.examine())
    print(doctor.report(checks))
    return int(any(check.state == "MISSING" for check in checks))


def _book(chosen: argparse.Namespace) -> int:
    from deepneighbors import book

    try:
        index = book.make(profile=chosen.profile)
    except (book.BookError, book.GateError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The book is made. Open {index.as_uri()}")
    return 0


def _make_run(chosen: argparse.Namespace, chapter: str) -> "Run":
    from deepneighbors import experiments

    settings = {name: getattr(chosen, name) for name in ("profile", "seed", "device", "n")}
    settings |= {"dataset": getattr(chosen, "dataset", None), "changes": tuple(getattr(chosen, "changes", ()))}
    return experiments.Run(chapter=chapter, **settings)


def _counts(states: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    known = list(states)
    counts = [sum(state == wanted for state, _ in known) for wanted in ("done", "missing", "damaged")]
    return (str(len(known)), *map(str, counts), f"{sum(size for _, size in known) / 1e6:.1f}")


def _table(rows: list[tuple[str, ...]]) -> str:
    """Rows as text: the first column to the left, the numbers to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shape = "  ".join([f"{{:<{wide[0]}}}", *(f"{{:>{width}}}" for width in wide[1:])])
    return "\n".join(shape.format(*row) for row in rows)


def _log_to_stderr() -> None:
    logger = logging.getLogger("deepneighbors")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # foolbox gives the root logger a handler


if __name__ == "__main__":
    sys.exit(main())
