"""Keep what the stages of a chapter cost, for `deepneighbors plan` where no recorded result knows.

    deepneighbors run nnif_detection --dataset cifar10 --profile full --n 50 --set modes=clean
    python benchmarks/stage_costs.py nnif_detection --dataset cifar10 --n 50 --set modes=clean

Writes the seconds of the stages of these settings that the store has, by stage, attack and detector, to results/costs. The
first node of a process also computes what the others share, such as the activations of all training images; with few images
that is nearly all of its time, and it is left out.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict

from deepneighbors import costs, data, paths, plan
from deepneighbors._files import write_file
from deepneighbors.experiments import Run
from deepneighbors.provenance import provenance
from deepneighbors.store import Node

SHARED = 10  # times the least seconds for the same work: a node that took longer did more than its own


def without_first(spent: Mapping[Node, float]) -> dict[Node, float]:
    """The nodes less those that also computed what the others of their stage, attack and detector share."""
    groups: dict[tuple[str, ...], list[Node]] = defaultdict(list)
    for node in spent:
        groups[(node.stage.name, *(costs.label(node, name) for name in ("attack", "detector")))].append(node)
    kept = {}
    for nodes in groups.values():
        least = min(spent[node] / costs.work(node) for node in nodes)
        kept |= {
            node: spent[node] for node in nodes if costs.work(node) == 1 or spent[node] <= SHARED * least * costs.work(node)
        }
    return kept


def main() -> None:
    """Write the costs of what the store has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter")
    parser.add_argument("--dataset")
    parser.add_argument("--n", type=int)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NAME=VALUE")
    chosen = parser.parse_args()
    run = Run(chosen.chapter, "full", n=chosen.n, dataset=chosen.dataset, changes=tuple(chosen.changes))
    spent = {node: run.store.seconds(node) for node in plan.nodes_of(run) if run.store.state(node) == "done"}
    origin = provenance(
        config={"profile": run.profile, "seed": run.seed, **asdict(run.settings)},
        code_fingerprint="",  # costs age with the machine, not with the code
        data_fingerprint=data.load(run.settings.dataset).fingerprint,
        seconds=sum(spent.values()),
    )
    kept = without_first(spent)
    origin["stages"] = costs.spent(kept.items())
    path = paths.costs() / run.folder / "stages.json"
    write_file(path, (json.dumps({"provenance": origin}, indent=1, sort_keys=True) + "\n").encode())
    print(f"{path}: {len(kept)} of {len(spent)} nodes")


if __name__ == "__main__":
    main()
