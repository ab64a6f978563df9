"""CW-Opt, the white-box attack that Cohen, Sapiro & Giryes (2020, section 4.4) try on NNIF.

Carlini & Wagner's L2 attack (2017), whose loss also pulls the embedding of the image to the training images that are most
helpful for the *clean* image:

    sum_i |x'_i - x_i|^2 + c_i (margin_i + weight * D_i)

The constant c is searched for each image, and D is inside it, so that D counts more where the target is hard to reach.
Success and the choice of the best image look at the margin alone: nothing here asks the detector, and the helpful images
of the clean label hold the embedding where the classifier is right. So a detector that survives CW-Opt has not been shown
to be robust; :class:`deepneighbors.attacks.detector_evasion.DetectorEvasion` is an attack that asks it.

Both attacks work where the network and the images lie, and only look at the network: no gradient of its parameters is kept.
"""

import logging

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.attacks.base import Best
from deepneighbors.attacks.classifier import ClassifierAttackResult, draw_targets
from deepneighbors.attacks.penalty import Adam, ConstantSearch, TanhBox
from deepneighbors.errors import InputError
from deepneighbors.networks import check_layers
from deepneighbors.networks.thin_resnet import pooled

log = logging.getLogger(__name__)

MODES = ("clean", "faithful")


def logits_and_embedding(network: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Logits ``(n, K)`` and the pooled activation ``(n, d)`` of one layer, from one differentiable forward pass.

    Raises
    ------
    InputError
        A layer that is never called, or a network that gives no logits.
    """
    outputs: list[Tensor] = []
    # A copy, because a later module may change the output in place.
    handle = network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, out: outputs.append(out.clone()))
    try:
        logits = network(x)
    finally:
        handle.remove()
    if not outputs:
        raise InputError(f"layer {layer!r} is never called in the network's forward pass; name one that is")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"network gives outputs of shape {tuple(logits.shape)}; logits (n, K) of K > 1 are needed")
    return logits, pooled(outputs[0])


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Labels ``(n,)`` of images ``(n, ...)``."""
    return torch.cat([network(part).argmax(1) for part in x.split(batch_size)])


def deficit(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest logit of the other classes less that of the wanted label, ``(n,)``; negative where the label is predicted."""
    wanted = labels[:, None]
    others = logits.scatter(1, wanted, -torch.inf).amax(1)
    return others - logits.gather(1, wanted).squeeze(1)


def anchor_distance(embedding: Tensor, anchors: Tensor, mode: str) -> Tensor:
    """D of embeddings ``(n, d)`` and their anchors ``(n, M, d)``, each image with its own: ``(n,)``.

    ``clean``: the sum over the M anchors of the L1 distance, as in Eq. (3) of the paper. ``faithful``: what the released
    code computes, the induced 1-norm of the matrix of differences: the largest, over the d coordinates, of the sum over the
    M anchors of the absolute difference.
    """
    by_coordinate = (embedding[:, None] - anchors).abs().sum(1)
    return by_coordinate.sum(1) if mode == "clean" else by_coordinate.amax(1)


@torch.no_grad()
def anchor_embeddings(network: nn.Module, images: Tensor, indices: Tensor, *, mode: str = "clean",
                      layer: str = "embedding", batch_size: int = 125) -> Tensor:  # fmt: skip
    """Embeddings ``(n, M, d)`` of the training images that ``indices`` (n, M) names for each image under attack.

    Each training image that is named goes through the network once, in order of its index. ``clean``: as it is.
    ``faithful``: the released code takes it for the unbounded variable of the attack and embeds ``(tanh(x) + 1) / 2``, a
    washed-out image with pixels from 0.50 to 0.88.

    Parameters
    ----------
    network, images
        The network in evaluation mode, and training images ``(N, ...)`` in [0, 1].
    indices
        Rows of ``images``, int64; for the paper the most helpful ones of each clean image with its predicted label.
    mode, layer
        As in :class:`CWOpt`.
    batch_size
        Images embedded together; matters only for batch norm with the statistics of the batch.

    Raises
    ------
    InputError
        An unknown mode or layer, images outside [0, 1], or indices that name none of them.
    """
    checks.one_of("mode", mode, MODES)
    checks.images("images", images)
    checks.whole("batch_size", batch_size, 1)
    check_network(network, layer)
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.ndim != 2 or indices.numel() == 0:
        raise InputError("indices must be a tensor of rows of the training images (int64), one list for each image")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= len(images):
        raise InputError(f"indices are from {low} to {high}; allowed are 0 to {len(images) - 1}")
    used, place = torch.unique(indices.to(images.device), return_inverse=True)
    rows = []
    for part in used.split(batch_size):
        shown = images[part] if mode == "clean" else (torch.tanh(images[part]) + 1) / 2
        rows.append(logits_and_embedding(network, shown, layer)[1])
    return torch.cat(rows)[place]


def check_network(network: nn.Module, layer: str) -> None:
    """Refuse what is no network, one that is training, and a layer that it does not have."""
    if not isinstance(network, nn.Module):
        raise InputError(f"network is a {type(network).__name__}; it must be a torch module that gives logits")
    if network.training:
        raise InputError("network is in training mode, where its answers may be random; call network.eval() first")
    check_layers(network, (layer,))


def check_attacked(x: Tensor, y: Tensor, targets: Tensor | None, classes: int) -> None:
    """Refuse images, true labels and targets that do not fit each other."""
    checks.images("x", x)
    checks.labels("y", y, len(x), classes)
    if targets is not None:
        checks.labels("targets", targets, len(x), classes)
        same = int((targets.to(y.device) == y).sum())
        if same:
            raise InputError(f"targets has {same} true labels among {len(y)}; each target must differ from the label in y")


class CWOpt:
    """Targeted CW-L2 with a pull to given anchors in the embedding; one call attacks all images.

    Adam works on the argument of a tanh, anew for each value of c. A candidate succeeds if the target is still the arg-max
    after ``confidence`` is taken off its logit; the successful candidate of least L2 is kept. c is multiplied by 10 until a
    first success, then its interval is halved. At each tenth of the steps, a search step ends for the whole batch if the
    batch's loss is above 0.9999 of what it was a tenth before; so results depend on how images are batched. (cleverhans
    starts that comparison from a loss of 1e6, which larger losses never pass; here it starts from infinity.)

    Adam is TensorFlow's, as in cleverhans. With ``weight=0`` and no pixel at exactly 0 or 1 the result is that of foolbox's
    attack. Such a pixel has a gradient as small as Adam's epsilon, which foolbox adds after the bias correction: it moves
    from the first step there and hardly here.

    Parameters
    ----------
    mode
        The distance D, see :func:`anchor_distance`, and with it the anchors that belong to it, see
        :func:`anchor_embeddings`: ``clean`` as the paper's Eq. (3), ``faithful`` as the released code.
    weight
        Of D beside the margin, inside c. 1 in Eq. (3) and in the code; 0 makes this the plain CW-L2 attack.
    layer
        Name of the module that gives the embedding.
    confidence, learning_rate, initial_const, search_steps, steps, abort_early, batch_size
        Of CW-L2; the defaults are the paper's and, where it says nothing, cleverhans 3.0.1's.

    Raises
    ------
    InputError
        A value outside its range.
    """

    def __init__(self, *, mode: str = "clean", weight: float = 1.0, layer: str = "embedding", confidence: float = 0.8,
                 learning_rate: float = 0.01, initial_const: float = 0.1, search_steps: int = 5, steps: int = 1000,
                 abort_early: bool = True, batch_size: int = 125):  # fmt: skip
        checks.one_of("mode", mode, MODES)
        checks.at_least("weight", weight, 0)
        checks.at_least("confidence", confidence, 0)
        for name, value in {"learning_rate": learning_rate, "initial_const": initial_const}.items():
            checks.positive(name, value)
        for name, count in {"search_steps": search_steps, "steps": steps, "batch_size": batch_size}.items():
            checks.whole(name, count, 1)
        checks.one_of("abort_early", abort_early, (True, False))
        self.mode, self.weight, self.layer, self.confidence = mode, weight, layer, confidence
        self.learning_rate, self.initial_const, self.search_steps = learning_rate, initial_const, search_steps
        self.steps, self.abort_early, self.batch_size = steps, abort_early, batch_size

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor, anchors: Tensor, *, targets: Tensor | None = None,
                 seed: int = 0) -> ClassifierAttackResult:  # fmt: skip
        """Attack images in batches in the order given.

        Parameters
        ----------
        network
            Gives logits ``(n, K)``; in evaluation mode.
        x, y
            Images ``(n, ...)`` in [0, 1] and their true labels ``(n,)``.
        anchors
            Embeddings ``(n, M, d)`` to which each image is pulled; from :func:`anchor_embeddings`, or in clean mode rows of
            the known training embeddings. M is 50 for 10 classes and 5 for 100 in the paper.
        targets
            Wanted labels ``(n,)``, none of them the true one; by default ``draw_targets(y, K, seed)``.

        Returns
        -------
        The images, the clean one where no candidate succeeded, and the network's verdict on them.

        Raises
        ------
        InputError
            Images outside [0, 1], labels, targets or anchors that do not fit, a network that is training.
        """
        checks.images("x", x)
        check_network(network, self.layer)
        with torch.no_grad():
            logits, embedding = logits_and_embedding(network, x[: self.batch_size], self.layer)
        check_attacked(x, y, targets, logits.shape[1])
        _check_anchors(anchors, len(x), embedding.shape[1])
        targets = (draw_targets(y, logits.shape[1], seed) if targets is None else targets).to(x.device)
        x, anchors = x.detach(), anchors.detach().to(x)
        found = []
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            found.append(self._run(network, x[part], targets[part], anchors[part]))
            log.info("CWOpt: %d of %d images", min(start + self.batch_size, len(x)), len(x))
        adversarial = torch.cat(found)
        predictions = predict(network, adversarial, self.batch_size)
        return ClassifierAttackResult(adversarial, predictions == targets, predictions, targets)

    def _run(self, network: nn.Module, x: Tensor, targets: Tensor, anchors: Tensor) -> Tensor:
        best, box = Best(x, "l2"), TanhBox(x)
        search = ConstantSearch(len(x), self.initial_const, device=x.device)
        for _ in range(self.search_steps):
            search.update(self._descend(network, box, targets, anchors, search.value, best))
        return best.x  # the clean image where nothing was found

    def _descend(
        self, network: nn.Module, box: TanhBox, targets: Tensor, anchors: Tensor, constant: Tensor, best: Best
    ) -> Tensor:
        """One value of c for each image; returns which images succeeded ``(n,)``."""
        w = torch.zeros_like(best.origin)
        start, adam, previous = box(w), Adam(w, self.learning_rate), float("inf")
        success = torch.zeros_like(best.found)
        for step in range(self.steps):
            with torch.enable_grad():
                w.requires_grad_(True)
                image = box(w)
                logits, embedding = logits_and_embedding(network, image, self.layer)
                penalty = self._penalty(logits, embedding, targets, anchors)
                loss = (((image - start) ** 2).flatten(1).sum(1) + constant * penalty).sum()
                (gradient,) = torch.autograd.grad(loss, w)
            w = w.detach()
            adam.step(w, gradient)
            if self.abort_early and step % max(1, self.steps // 10) == 0:
                if float(loss.detach()) > 0.9999 * previous:
                    break
                previous = float(loss.detach())
            reached = self._reached(logits.detach(), targets)
            best.update(image.detach(), reached)
            success |= reached
        return success

    def _penalty(self, logits: Tensor, embedding: Tensor, targets: Tensor, anchors: Tensor) -> Tensor:
        """What c multiplies, ``(n,)``."""
        margin = (deficit(logits, targets) + self.confidence).clamp(min=0)
        return margin + self.weight * anchor_distance(embedding, anchors, self.mode)

    def _reached(self, logits: Tensor, targets: Tensor) -> Tensor:
        lowered = logits.scatter_add(1, targets[:, None], torch.full_like(logits[:, :1], -self.confidence))
        return lowered.argmax(1) == targets


def _check_anchors(anchors: Tensor, count: int, width: int) -> None:
    checks.points("anchors", anchors)
    if anchors.ndim != 3 or len(anchors) != count or anchors.shape[1] == 0 or anchors.shape[2] != width:
        raise InputError(f"anchors have shape {tuple(anchors.shape)}; ({count}, M, {width}) is needed, M of at least 1")
