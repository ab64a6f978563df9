"""A run in several processes of one machine, which fills a GPU or many cores without a workflow engine.

One stage seldom fills a GPU: its time goes to launching small kernels, one after the other. So each process takes whole
stages, those whose inputs are done, and the summary of an experiment as soon as all its stages are. All share one store, in
which each stage is computed once, and the results are those of a run in one process.
"""

import gc
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait as wait_for

import threadpoolctl
import torch

from deepneighbors import checks
from deepneighbors._logs import log_to
from deepneighbors.experiments import CHAPTERS, Run, compute
from deepneighbors.plan import nodes_of, uses_device
from deepneighbors.store import Node, StoreError

log = logging.getLogger(__name__)

_FULL = -1  # what a worker answers when the memory of the GPU did not suffice


def compute_all(run: Run, experiments: Iterable[str] | None = None, *, workers: int) -> Iterator[tuple[str, int]]:
    """Compute experiments of a run, by default all; yields the name of each and the rows of its result as it is done.

    The results are saved, and those of the full profile recorded, as :func:`deepneighbors.experiments.compute` does it.
    Cores are shared out evenly. On a GPU, stages that need none are mixed with the others, and one that finds its memory
    full is tried again with fewer at once. Where this process ends, however that may be, the others end too.

    Parameters
    ----------
    workers
        Processes. On a GPU each loads what its stages need: in chapter 1 thirteen of them filled 80 GB.

    Raises
    ------
    InputError
        Fewer than one worker, or an unknown experiment.
    StoreError
        A worker died, a stage alone fills the GPU, or the store cannot be written. What was done is kept.
    """
    checks.whole("workers", workers, 1)
    names = list(CHAPTERS[run.chapter].experiments if experiments is None else experiments)
    run = replace(run, workers=workers)
    missing = [node for node in nodes_of(run, names) if run.store.state(node) != "done"]
    if run.device != "cpu":
        missing = _mixed(missing)
    nodes = {node.key: node for node in missing}
    jobs: dict[str, set[str]] = {key: {part.key for part in node.inputs} & nodes.keys() for key, node in nodes.items()}
    for name in names:
        jobs[name] = {node.key for node in nodes_of(run, [name])} & nodes.keys()
    context = multiprocessing.get_context("spawn")  # a process that has used CUDA cannot be forked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arguments = (run, names, max(1, cores // workers))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=arguments) as pool:
        try:
            yield from _in_order(pool, jobs, nodes, workers)
        except BrokenProcessPool as error:
            raise StoreError(
                f"One of {workers} workers died, killed perhaps for want of memory; the same command goes on after the last "
                "finished stage, with fewer --workers if memory is short."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _mixed(nodes: list[Node]) -> list[Node]:
    """Nodes that use the device and nodes that do not, in step, so that neither kind waits for the end of the other."""
    kinds = [[node for node in nodes if uses_device(node.stage.function) == wanted] for wanted in (True, False)]
    ranked = [((place + 1) / len(kind), node) for kind in kinds for place, node in enumerate(kind)]
    return [node for _, node in sorted(ranked, key=lambda pair: pair[0])]


def _in_order(
    pool: ProcessPoolExecutor, jobs: dict[str, set[str]], nodes: dict[str, Node], most: int
) -> Iterator[tuple[str, int]]:
    """Run jobs, stages by their key and summaries by their name, each after those that it waits for, ``most`` at once.

    Where memory is short there are fewer: one less for each stage that did not fit, and one more for as many that did as run
    at once. What was short may have been a passing need, and a worker that waits keeps the data that it has loaded.
    """
    running: dict[Future[int], str] = {}
    fitting = float(most)  # jobs that memory holds
    shared: set[Future[int]] = set()  # that ran beside another
    while jobs or running:
        ready = [job for job, needs in jobs.items() if not needs]
        ready.sort(key=nodes.__contains__)  # summaries first: what is recorded is kept, and none is left to the very end
        for job in itertools.islice(ready, max(0, int(fitting) - len(running))):
            del jobs[job]
            running[pool.submit(_stage if job in nodes else _summary, job)] = job
        if len(running) > 1:
            shared |= running.keys()
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        at_once = len(running)
        for future in done:
            job = running.pop(future)
            rows = future.result()
            if rows == _FULL:
                if future not in shared:
                    raise StoreError(f"{nodes[job]} needs more memory than the GPU has free, though nothing ran beside it.")
                fitting = max(1.0, min(fitting, at_once) - 1)
                log.warning("%s found the GPU's memory full; it is tried again, with %d at once", nodes[job], fitting)
                jobs[job] = set()
                continue
            fitting = min(float(most), fitting + 1 / fitting)
            for needs in jobs.values():
                needs.discard(job)
            if job not in nodes:
                yield job, rows


# What a worker knows: the run, and its nodes by key. Nodes hold functions under the names of stages, so keys are sent.
_RUN: Run
_NODES: dict[str, Node]


def _start(run: Run, names: list[str], threads: int) -> None:
    global _RUN, _NODES
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, and its parent says so once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log_to(logging.StreamHandler(sys.stderr))
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)
    run = replace(run, device=run.device)  # made anew: it also sets up the device
    _RUN, _NODES = run, {node.key: node for node in nodes_of(run, names)}


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _stage(key: str) -> int:
    answer = 0
    try:
        _RUN.store.get(_NODES[key], _RUN.context)
    except torch.OutOfMemoryError:
        answer = _FULL  # its tensors are free only when the error is gone
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()  # other processes need what this one keeps for later
    return answer


def _summary(name: str) -> int:
    return len(compute(_RUN, name).table)
