"""An adaptive attack on a classifier together with a detector of adversarial images.

An adversarial image counts here only if the classifier is fooled *and* the detector's score is below its threshold, as
Carlini & Wagner (2017) and Athalye et al. (2018) demand of an attack on a detector. The detector need not be
differentiable: it is asked about candidates, and the way towards it goes through a surrogate, a set of training embeddings
near which an image of the wanted label looks clean.

For NNIF the surrogate is its strongest single feature, D_up (Cohen, Sapiro & Giryes 2020, Table 2): the mean L2 distance to
the training images that are most helpful for the image *as it is now*, with the label that it *now* gets. The set is found
again every few steps and held fixed between. The direction and the norm are decoupled (Rony et al. 2019): the radius shrinks
while both the classifier and the detector are fooled, and grows while one of them is not.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.attacks.base import distance
from deepneighbors.attacks.cw_opt import check_attacked, check_network, deficit, logits_and_embedding, predict
from deepneighbors.attacks.vote_margin import Ball
from deepneighbors.detectors.nnif import FeatureInfluence
from deepneighbors.errors import InputError

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """A fitted detector."""

    def score_samples(self, x: Tensor) -> np.ndarray:
        """Scores ``(n,)`` of images ``(n, ...)``; higher is more adversarial."""


class Surrogate(Protocol):
    """Chooses where an image is to be pulled."""

    def __call__(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Training embeddings ``(n, M, d)`` that embeddings ``(n, d)`` with wanted labels ``(n,)`` should be near to."""


class HelpfulAnchors:
    """The M most helpful training images for each label: the mean distance to them is NNIF's D_up.

    Parameters
    ----------
    embeddings
        Training embeddings ``(N, d)``.
    influence
        Fitted on them, such as :class:`deepneighbors.influence.LastLayerInfluence`.
    m
        M.
    """

    def __init__(self, embeddings: Tensor, influence: FeatureInfluence, *, m: int = 50):
        _check_embeddings(embeddings)
        checks.whole("m", m, 1, len(embeddings))
        self.embeddings, self.influence, self.m = embeddings, influence, m

    def __call__(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Anchors ``(n, M, d)``, the most helpful first."""
        helpful, _ = self.influence.extremes(embedding, labels, self.m)
        return self.embeddings[helpful]


class NearestAnchors:
    """The M nearest training images of each label, by L2 distance: for detectors without influence, and as a control.

    Parameters
    ----------
    embeddings, labels
        Training embeddings ``(N, d)`` and their labels ``(N,)``.
    m
        M; at most the number of training images of the rarest label.
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, *, m: int = 50):
        _check_embeddings(embeddings)
        checks.labels("labels", labels, len(embeddings))
        checks.whole("m", m, 1, int(torch.unique(labels, return_counts=True)[1].min()))
        self.embeddings, self.labels, self.m = embeddings, labels.to(embeddings.device), m

    def __call__(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Anchors ``(n, M, d)``, the nearest first."""
        far = torch.cdist(embedding, self.embeddings).masked_fill(labels[:, None] != self.labels, torch.inf)
        return self.embeddings[far.topk(self.m, dim=1, largest=False).indices]


def _check_embeddings(embeddings: Tensor) -> None:
    checks.points("embeddings", embeddings)
    if embeddings.ndim != 2:
        raise InputError(f"embeddings have shape {tuple(embeddings.shape)}; one vector for each training image is needed")


def threshold_at_fpr(clean_scores: ArrayLike, fpr: float = 0.05) -> float:
    """The lowest threshold at which at most a share ``fpr`` of clean images is flagged; a score at or above it is flagged.

    Clean images with the same score are flagged together or not at all, so the share may be smaller.

    Raises
    ------
    InputError
        No scores, scores that are not finite, or a share outside [0, 1).
    """
    scores = np.asarray(clean_scores, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise InputError(f"clean_scores has shape {scores.shape}; it must be a vector of finite numbers, not empty")
    checks.at_least("fpr", fpr, 0)
    if fpr >= 1:
        raise InputError(f"fpr is {fpr!r}; it must be a number of at least 0 and below 1")
    flagged = int(fpr * len(scores) + 1e-9)  # the product may fall just short of a whole number
    highest_kept = np.sort(scores)[len(scores) - 1 - flagged]
    return float(np.nextafter(highest_kept, np.inf))


@dataclass(frozen=True)
class EvasionResult:
    """What the attack made, judged again by the network and by the detector on all images together.

    Attributes
    ----------
    x
        Images ``(n, ...)`` in [0, 1]: the smallest perturbation that passed; where none did, the fooling candidate of lowest
        score; where none fooled the classifier, the clean image.
    fooled
        Whether the network answers the target, or without targets a label that is not the true one; ``(n,)``.
    evaded
        Whether ``fooled`` and the score is below the threshold, ``(n,)``.
    score
        The detector's score, ``(n,)``, float64.
    l2
        L2 norm of the perturbation, ``(n,)``.
    """

    x: Tensor
    fooled: Tensor
    evaded: Tensor
    score: Tensor
    l2: Tensor


@dataclass(frozen=True)
class _Problem:
    """Whom to fool, and into what."""

    network: nn.Module
    detector: Scorer
    threshold: float
    batch_size: int

    def score(self, x: Tensor) -> Tensor:
        scores = torch.as_tensor(np.asarray(self.detector.score_samples(x), dtype=np.float64), device=x.device)
        if scores.shape != (len(x),):
            raise InputError(f"detector gives scores of shape {tuple(scores.shape)} for {len(x)} images; one each is needed")
        return scores

    def fooled(self, x: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
        labels = predict(self.network, x, self.batch_size)
        return labels != y if targets is None else labels == targets


class _Kept:
    """The best verified image of each sample: the smallest that passed, or else the fooling one of lowest score."""

    def __init__(self, problem: _Problem, x: Tensor, y: Tensor, targets: Tensor | None):
        self.problem, self.origin, self.y, self.targets = problem, x, y, targets
        self.x = x.clone()
        self.passed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        # A norm where something passed, a score where something only fooled.
        self.value = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    def verify(self, image: Tensor) -> Tensor:
        """Ask classifier and detector, keep what is better; returns which images pass both ``(n,)``."""
        fooled, score = self.problem.fooled(image, self.y, self.targets), self.problem.score(image)
        passes = fooled & (score < self.problem.threshold)
        value = torch.where(passes, distance("l2", image, self.origin).double(), score)
        first = passes & ~self.passed
        better = first | (fooled & (passes == self.passed) & (value < self.value))
        self.x[better], self.value[better] = image[better], value[better]
        self.passed |= passes
        return passes


class DetectorEvasion:
    """Smallest L2 perturbation that fools a classifier and stays below a detector's threshold.

    The loss is ``max(0, deficit + confidence) + weight * pull``: how far the wanted logit is behind the largest other one,
    and the mean L2 distance to the surrogate's anchors, in units of what it is at the clean image. So ``weight`` is in
    logits, whatever the scale of the embedding. The wanted label is the target; without targets it is, at each search, the
    likeliest wrong label.

    Every ``refresh`` steps the anchors are found again and the true classifier and detector judge the iterate; only what
    passes both is kept. The radius shrinks from there to the next verdict as long as the label holds, or else it grows. At
    the end the segment from the clean image is halved ``polish`` times, each time with the true verdict.

    The most helpful images may lie where the labels meet, because those have the largest gradients; and a detector may flag
    what is too near. So the pull is not always the shortest way past a detector. One descent is made for each weight, and of
    all of them the smallest verified perturbation is kept; with weight 0, high confidence alone has to pass. A descent costs
    ``steps`` gradients of the network and ``steps / refresh`` verdicts of the detector.

    Parameters
    ----------
    surrogate
        :class:`HelpfulAnchors` for NNIF, :class:`NearestAnchors`, or any :class:`Surrogate`.
    layer
        Name of the module that gives the embedding.
    weights
        Of the pull, each at least 0: one descent from the clean image for each.
    confidence
        Lead of the wanted logit beyond which the margin no longer counts, at least 0. Detectors pass confident images more
        easily, so this is more than fooling the classifier needs.
    steps
        Gradient steps of a descent; their size and the change of radius fall to about 1 % on a cosine.
    refresh
        Steps between two searches and verdicts.
    polish
        Halvings at the end.
    batch_size
        Images attacked together.

    Raises
    ------
    InputError
        A value outside its range.
    """

    def __init__(self, surrogate: Surrogate, *, layer: str = "embedding", weights: Sequence[float] = (10.0, 0.0),
                 confidence: float = 10.0, steps: int = 300, refresh: int = 10, polish: int = 6,
                 batch_size: int = 125):  # fmt: skip
        if not callable(surrogate):
            raise InputError(f"surrogate is a {type(surrogate).__name__}; it must give anchors for embeddings and labels")
        if not isinstance(weights, Sequence) or len(weights) == 0:
            raise InputError(f"weights is {weights!r}; it must be a sequence of at least one number of at least 0")
        for weight in weights:
            checks.at_least("weight", weight, 0)
        checks.at_least("confidence", confidence, 0)
        for name, value in {"steps": steps, "refresh": refresh, "batch_size": batch_size}.items():
            checks.whole(name, value, 1)
        checks.whole("polish", polish, 0)
        self.surrogate, self.layer, self.weights, self.confidence = surrogate, layer, tuple(weights), confidence
        self.steps, self.refresh, self.polish, self.batch_size = steps, refresh, polish, batch_size

    def __call__(self, network: nn.Module, detector: Scorer, threshold: float, x: Tensor, y: Tensor, *,
                 targets: Tensor | None = None) -> EvasionResult:  # fmt: skip
        """Attack images in batches in the order given.

        Parameters
        ----------
        network
            Gives logits ``(n, K)``; in evaluation mode.
        detector
            Fitted; only its ``score_samples`` is used.
        threshold
            A score at or above it is flagged; from :func:`threshold_at_fpr` on scores of clean images.
        x, y
            Images ``(n, ...)`` in [0, 1] and their true labels ``(n,)``.
        targets
            Wanted labels ``(n,)``, none of them the true one; any wrong label will do when None.

        Raises
        ------
        InputError
            Images outside [0, 1], labels or targets that do not fit, a network that is training, no finite threshold.
        """
        checks.images("x", x)
        check_network(network, self.layer)
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
            raise InputError(f"threshold is {threshold!r}; it must be a finite number")
        with torch.no_grad():
            logits, _ = logits_and_embedding(network, x[: self.batch_size], self.layer)
        check_attacked(x, y, targets, logits.shape[1])
        x, y = x.detach(), y.to(x.device)
        targets = None if targets is None else targets.to(x.device)
        problem = _Problem(network, detector, threshold, self.batch_size)
        found = []
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            kept = _Kept(problem, x[part], y[part], None if targets is None else targets[part])
            for weight in self.weights:
                self._descend(kept, weight)
            self._polish(kept)
            found.append(kept.x)
            log.info("DetectorEvasion: %d of %d images", min(start + self.batch_size, len(x)), len(x))
        adversarial = torch.cat(found)
        fooled, score = problem.fooled(adversarial, y, targets), problem.score(adversarial)
        return EvasionResult(adversarial, fooled, fooled & (score < threshold), score, distance("l2", adversarial, x))

    def _descend(self, kept: _Kept, weight: float) -> None:
        ball = Ball("l2", kept.origin)
        widest = kept.origin[0].numel() ** 0.5
        for step in range(self.steps):
            searched = step % self.refresh == 0
            if searched:
                passes = kept.verify(ball.image)
            with torch.enable_grad():
                image = ball.image.requires_grad_(True)
                logits, embedding = logits_and_embedding(kept.problem.network, image, self.layer)
                if searched:
                    labels = _wanted(logits.detach(), kept.y, kept.targets)
                    anchors = self.surrogate(embedding.detach(), labels).detach().to(embedding)
                pull = (embedding[:, None] - anchors).norm(dim=2).mean(1)
                if step == 0:
                    unit = pull.detach().clamp(min=1e-12)
                behind = deficit(logits, labels)
                loss = (behind + self.confidence).clamp(min=0) + weight * pull / unit
                (gradient,) = torch.autograd.grad(loss.sum(), image)
            ball.step(gradient, passes & (behind.detach() < 0), 0.5 + 0.5 * math.cos(math.pi * step / self.steps))
            ball.radius.clamp_(max=widest)  # where nothing ever passes, the radius would grow without end
        kept.verify(ball.image)

    def _polish(self, kept: _Kept) -> None:
        end = kept.x.clone()
        low = torch.zeros(len(end), device=end.device)
        high = torch.ones_like(low)
        for _ in range(self.polish):
            middle = (low + high) / 2
            passes = kept.verify(torch.lerp(kept.origin, end, middle.view(-1, *[1] * (end.ndim - 1))))
            high, low = torch.where(passes, middle, high), torch.where(passes, low, middle)


def _wanted(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    """The target, or the likeliest wrong label, ``(n,)``."""
    return logits.scatter(1, y[:, None], -torch.inf).argmax(1) if targets is None else targets
