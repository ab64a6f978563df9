"""The stage that scores every training point by every defence, and says what each would remove."""

from collections.abc import Sequence

from torch import Tensor

from deepneighbors import defences
from deepneighbors.dknn_training import CREDIBILITIES, other_neighbors, training_credibility
from deepneighbors.experiments.poisoning_ila.poisons import TrainingSet, training_set
from deepneighbors.experiments.poisoning_ila.searching import SEARCH, held_out, index
from deepneighbors.experiments.poisoning_ila.training import load_network
from deepneighbors.networks import MnistCNN
from deepneighbors.store import Artifact, Context, Payload, stage

HIDDEN = "relu3"  # the last hidden layer
# Each detector's form that is removed and retrained on, by its setting: as its paper has it; c_label without self is ours.
MAIN = {
    "credibility": "credibility=c_label;self=out", "deep_knn": "", "activation_clustering": "reduction=ica",
    "spectral": "centred=yes", "loss": "", "random": "",
}  # fmt: skip


@stage(
    "score_training",
    uses=(*SEARCH, "deepneighbors.experiments.poisoning_ila.searching", "deepneighbors.defences"),
)
def score_training(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Suspicion of all training points, ``detector|setting``; and for each detector's main form the points to remove.

    So many are removed: ``removal`` for each poisoned one. A real defender would have to guess their number.
    """
    found, network = training_set(config["data"], inputs[1:]), load_network(inputs[0], config["epoch"], context.device)
    scores = _by_credibility(config, network, found, context.device)
    hidden = defences.DeepKNNDefence(network, HIDDEN, k=min(config["deep_knn"], len(found.y)))
    features = hidden.features(found.x)
    scores["deep_knn|"] = hidden.score_features(features, found.y)
    for reduction in ("ica", "pca"):
        clusters = defences.ActivationClustering(network, HIDDEN, reduction=reduction, seed=config["data"]["seed"])
        scores[f"activation_clustering|reduction={reduction}"] = clusters.score_features(features, found.y)
    for centred in (True, False):
        spectral = defences.SpectralSignatures(network, HIDDEN, centred=centred)
        scores[f"spectral|centred={'yes' if centred else 'no'}"] = spectral.score_features(features, found.y)
    scores["loss|"] = defences.TrainingLoss(network).scores(found.x, found.y)
    scores["random|"] = defences.RandomScores(seed=config["data"]["seed"]).scores(found.x, found.y)
    count = round(config["removal"] * int(found.poisoned.sum()))
    removed = {
        f"removed/{detector}": defences.most_suspect(scores[f"{detector}|{form}"], count, seed=config["data"]["seed"])
        for detector, form in MAIN.items()
    }
    kept = {f"scores/{name}": score for name, score in scores.items()}
    return Payload({**kept, **removed, "poisoned": found.poisoned})


def _by_credibility(config: dict, network: MnistCNN, found: TrainingSet, device: str) -> dict[str, Tensor]:
    """The three credibilities, without and with each point among its neighbours, from one search."""
    classifier = index(config, network, found, device).calibrate(*held_out(config)["calibration"])
    near = other_neighbors(classifier)
    scores = {}
    for own in ("out", "in"):
        said = training_credibility(classifier, leave_self_out=own == "out", neighbors=near)
        for name in CREDIBILITIES:
            scores[f"credibility|credibility={name};self={own}"] = defences.credibility_score(said[name])
    return scores
