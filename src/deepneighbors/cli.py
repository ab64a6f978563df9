"""The ``deepneighbors`` command. Results go to stdout, progress and errors to stderr."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn

from deepneighbors._logs import log_to
from deepneighbors._text import text_table
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

    log_to(logging.StreamHandler(sys.stderr))
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
    run.add_argument(
        "--task", metavar="NAME", help="only the stages of this task of `deepneighbors plan --json`, and its receipt"
    )
    run.add_argument("--receipt", metavar="PATH", help="where to write the receipt of the task; by default in the store")
    run.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    run.add_argument("--workers", type=int, default=1, help="processes that share the work, to fill a GPU or many cores")
    _add_settings(run)
    _add_changes(run)
    run.set_defaults(command=_run)

    plan = commands.add_parser("plan", help="print what a run will do, what of it is done, and what the rest will cost")
    plan.add_argument("chapter", nargs="*", help="by default all")
    plan.add_argument("--experiment", action="append", metavar="NAME", help="only this one; may be repeated")
    plan.add_argument(
        "--json", action="store_true", help="the tasks of a workflow engine, of one data set, with what each needs"
    )
    _add_settings(plan)
    _add_changes(plan)
    plan.set_defaults(command=_plan, device="auto")

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
    book.add_argument("--notebook", action="append", metavar="NAME", help="execute only this one and build no HTML")
    book.set_defaults(command=_book)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="quick", help="smoke, quick (default) or full")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--n", type=int, help="images to attack, instead of the profile's number")


def _add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="one of the chapter's data sets, instead of the profile's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                        help="another setting than the profile's, like epochs=30; may be repeated")  # fmt: skip


def _run(chosen: argparse.Namespace) -> int:
    from deepneighbors import experiments

    run = _make_run(chosen, chosen.chapter)
    if chosen.receipt and not chosen.task:
        raise InputError(f"--receipt is {chosen.receipt!r} without --task; only a task has a receipt")
    if chosen.task:
        if chosen.workers != 1:
            raise InputError(f"--workers is {chosen.workers} with --task; the stages of a task run one after the other")
        from deepneighbors import plan

        print(plan.compute(run, chosen.task, chosen.experiment, receipt=chosen.receipt))
        return 0
    known = experiments.CHAPTERS[run.chapter].experiments
    names = chosen.experiment or list(known)
    for name in names:
        if name not in known:
            raise InputError(f"experiment is {name!r}; allowed in {run.chapter} are {', '.join(known)}")
    made: Iterable[tuple[str, int]] = ((name, len(experiments.compute(run, name).table)) for name in names)
    if chosen.workers != 1:
        from deepneighbors import parallel

        made = parallel.compute_all(run, names, workers=chosen.workers)
    for name, rows in made:
        print(f"{name}: {rows} rows", flush=True)
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from deepneighbors import experiments, plan

    chapters = chosen.chapter or list(experiments.CHAPTERS)
    if chosen.json:
        runs = [_make_run(chosen, name) for name in chapters]
        print(json.dumps([plan.as_json(task) for run in runs for task in plan.tasks(run, chosen.experiment)], indent=1))
        return 0
    runs = [run for name in chapters for run in _runs_of(chosen, name)]
    print(plan.report(runs, chosen.experiment))
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
            nodes = list(run.store.walk(*experiment.nodes(run.of(name)).values()))
            for node in nodes:
                if node.key not in states:  # experiments share stages, and reading one checks every byte
                    states[node.key] = (run.store.state(node), run.store.size(node))
            rows.append((f"{chapter_name}/{name}", *_counts(states[node.key] for node in nodes)))
    rows.append(("all, each stage once", *_counts(states.values())))
    print(text_table(rows))
    return 0


def _doctor(chosen: argparse.Namespace) -> int:
    from deepneighbors import doctor

    checks = list(doctor.examine())
    print(doctor.report(checks))
    return int(any(check.state == "MISSING" for check in checks))


def _book(chosen: argparse.Namespace) -> int:
    from deepneighbors import book

    try:
        if chosen.notebook:
            print(*book.execute(chosen.notebook, chosen.profile), sep="\n")
            return 0
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


def _runs_of(chosen: argparse.Namespace, chapter: str) -> list["Run"]:
    """The run of a chapter; at the full profile one for each data set of its paper, unless one is named."""
    from deepneighbors import profiles

    run = _make_run(chosen, chapter)
    if chosen.profile != "full" or chosen.dataset:
        return [run]
    names = profiles.SETTINGS[chapter][chosen.profile].published
    return [replace(run, dataset=name) for name in names]


def _counts(states: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    known = list(states)
    counts = [sum(state == wanted for state, _ in known) for wanted in ("done", "missing", "damaged")]
    return (str(len(known)), *map(str, counts), f"{sum(size for _, size in known) / 1e6:.1f}")


if __name__ == "__main__":
    sys.exit(main())
