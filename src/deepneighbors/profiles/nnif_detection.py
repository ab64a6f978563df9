"""Settings of chapter 2, detection by influence and neighbours, at every profile."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from deepneighbors.errors import InputError


@dataclass(frozen=True)
class NnifDetection:
    """Chapter 2. Sources: P, the paper of Cohen, Sapiro & Giryes (2020); C, their released code; T, their earlier tree.

    A fast attack is made on ``fast_validation`` and ``fast_test`` images, a slow one on the others; :meth:`with_images` caps
    all four.
    """

    datasets: ClassVar[tuple[str, ...]] = ("mnist", "cifar10", "cifar100", "svhn")
    published: ClassVar[tuple[str, ...]] = ("cifar10", "cifar100", "svhn")  # those of the paper
    slow: ClassVar[tuple[str, ...]] = ("jsma", "cw", "ead", "cw_opt")
    dataset: str = "cifar10"
    # 1,000 validation images, the rest trains; 1,000 and 10,000 are attacked (P).
    train_images: int = 60_000
    validation_images: int = 1_000
    fast_validation: int = 1_000
    fast_test: int = 10_000
    slow_validation: int = 1_000
    slow_test: int = 10_000
    # The thin ResNet with 5 blocks a stage; SGD 0.1, momentum 0.9, batch 125, 200 epochs, weight decay 4e-4 (C).
    blocks: int = 5
    epochs: int = 200
    learning_rate: float = 0.1
    one_cycle: bool = False
    weight_decay: float = 4e-4
    precision: str = "float32"  # of the convolutions in training; bfloat16 is ours, for machines where that is faster
    # Batch norm: clean uses running statistics, faithful those of the batch, as the released code.
    modes: tuple[str, ...] = ("clean", "faithful")
    # At most so many images of a fast attack in faithful mode, and for the views, as in ``with_images``; None is no cap.
    faithful_n: int | None = None
    view_n: int | None = None
    attacks: tuple[str, ...] = ("fgsm", "jsma", "deepfool", "cw", "pgd", "ead")
    # Attacks whose images also come rounded, mixed and one at a time, and attacks of the ablation (P: DeepFool).
    view_attacks: tuple[str, ...] = ("fgsm", "jsma", "deepfool", "cw", "pgd", "ead")
    ablation_attacks: tuple[str, ...] = ("fgsm", "jsma", "deepfool", "cw", "pgd", "ead")
    # Steps of the slow attacks; None leaves the paper's.
    search_steps: int | None = None
    steps: int | None = None
    # Hyper-parameters to choose from (C): k of DkNN as shares of the training images a class, k of LID, epsilon, M.
    dknn_k: tuple[float, ...] = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.94, 0.98, 1.02, 1.06, 1.1)
    lid_k: tuple[int, ...] = tuple(range(10, 41, 2))
    epsilons: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 8e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 8e-3, 1e-2)
    sizes: tuple[int, ...] = (*range(10, 101, 10), *range(150, 501, 50))
    # White box: helpful images that CW-Opt pulls towards (C); the adaptive attack is ours.
    helpful: int = 50
    adaptive_images: int = 1_000
    adaptive_steps: int = 300
    # Estimators of influence are compared on so many clean and attacked images, and so many training images; LiSSA's
    # repeats, depth and mini-batch, for test images (C).
    estimator_queries: int = 100
    estimator_training: int = 5_000
    lissa: tuple[int, int, int] = (5, 5, 200)
    # Training images that test images are compared with in faithful mode (C; P says 10,000).
    subset: int = 5_000

    def check(self) -> None:
        """Refuse settings that do not fit together, before hours have gone into what comes first.

        Raises
        ------
        InputError
            Fewer training images for the estimators than LiSSA takes.
        """
        needed = math.prod(self.lissa)
        if needed > self.estimator_training:
            lissa = ",".join(map(str, self.lissa))
            raise InputError(
                f"estimator_training is {self.estimator_training}, but lissa={lissa} takes {needed} training images; "
                f"ask for {needed} or more"
            )

    def with_images(self, n: int) -> "NnifDetection":
        """The same with at most ``n`` test images of a fast attack, half of that for a slow one, and half to validate."""
        shares = {"fast_test": 1, "slow_test": 2, "fast_validation": 2, "slow_validation": 4, "adaptive_images": 5}
        return replace(self, **{name: max(10, min(getattr(self, name), n // share)) for name, share in shares.items()})


SETTINGS: dict[str, NnifDetection] = {
    "full": NnifDetection(),
    "quick": NnifDetection(
        dataset="mnist",
        train_images=6_000,
        validation_images=300,
        fast_validation=60,
        fast_test=90,
        slow_validation=50,
        slow_test=50,
        blocks=1,
        epochs=2,
        one_cycle=True,
        modes=("clean",),
        view_attacks=("deepfool",),
        ablation_attacks=("deepfool",),
        search_steps=2,
        steps=50,
        dknn_k=(0.8,),
        lid_k=(20,),
        epsilons=(1e-3,),
        sizes=(10, 100),
        estimator_queries=5,
        estimator_training=200,
        lissa=(1, 2, 100),
        adaptive_images=20,
        adaptive_steps=100,
        subset=1_000,
    ),
    "smoke": NnifDetection(
        dataset="mnist",
        train_images=1_500,
        validation_images=100,
        fast_validation=12,
        fast_test=12,
        slow_validation=12,
        slow_test=12,
        blocks=1,
        epochs=3,
        one_cycle=True,
        modes=("clean",),
        view_attacks=("deepfool",),
        ablation_attacks=("deepfool",),
        search_steps=1,
        steps=10,
        dknn_k=(0.2,),
        lid_k=(5,),  # cross-validation of a choice is most of a detector's time
        epsilons=(1e-2,),
        sizes=(10,),
        helpful=20,
        estimator_queries=4,
        estimator_training=200,
        lissa=(1, 1, 50),
        adaptive_images=10,
        adaptive_steps=10,
        subset=500,
    ),
}
