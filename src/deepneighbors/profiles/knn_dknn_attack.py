"""Settings of chapter 1. Sources: P, the paper and slides of Sitawarin & Wagner (2019); C, their released code."""

from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True)
class KnnDknnAttack:
    """Chapter 1. Every ``*_images`` field counts test digits; :meth:`with_images` caps the attacked ones."""

    datasets: ClassVar[tuple[str, ...]] = ("mnist",)
    published: ClassVar[tuple[str, ...]] = datasets
    dataset: str = "mnist"
    # Data. 60,000 neighbours for both classifiers, 9,250 test digits after 750 for calibration (C).
    knn_database: int = 60_000
    dknn_database: int = 60_000
    clean_images: int = 9_250
    knn_images: int = 9_250
    dknn_images: int = 9_250
    rule_images: int = 1_000  # by the rules of the 2020 code, ten times slower than ours
    curve_images: int = 1_000
    extra_images: int = 1_000
    outside_images: int = 1_000  # of each kind that is no digit
    exact_images: int = 500
    sweep_images: int = 100
    # Network: Adam 1e-3, batch 128, 15 epochs, constant rate (C).
    train_images: int = 60_000
    test_images: int = 10_000
    epochs: int = 15
    learning_rate: float = 1e-3
    one_cycle: bool = False
    # k = 75 neighbours a layer, cosine distance (P). 75 calibration digits a class (C).
    k: int = 75
    # Gradient attack and feature adversary: 5 constants of 200 steps (C); Linf in one run of 400 (not recorded).
    search_steps: int = 5
    steps: int = 200
    linf_steps: int = 400
    # Minimum-norm attack of 2020: 10 constants of 500 steps (C).
    rule_search_steps: int = 10
    rule_steps: int = 500
    # Vote-margin attack: ours.
    margin_steps: int = 300
    margin_targets: int = 2
    dknn_margin_steps: int = 200
    credible_steps: int = 200
    # Linf radii of the paper's curves (P).
    epsilons: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    # The adversarially trained network, trained in an L2 ball. The follow-up's recipe needs 70 epochs of 40 steps.
    robust_train_images: int = 60_000
    robust_epochs: int = 5
    robust_epsilon: float = 2.0
    robust_steps: int = 4
    # Sweeps of one choice at a time.
    sweep_guides: tuple[int, ...] = (10, 25, 75, 150, 300)
    sweep_k: tuple[int, ...] = (1, 5, 25, 75, 150)
    sweep_steps: tuple[int, ...] = (25, 50, 100, 200, 500)
    temperatures: tuple[float, ...] = (0.03, 0.1, 0.3)

    def with_images(self, n: int) -> "KnnDknnAttack":
        """The same with at most ``n`` attacked digits in the two tables, and a share of that in slower experiments."""
        shares = {
            "knn_images": 1,
            "dknn_images": 1,
            "rule_images": 10,
            "extra_images": 8,
            "curve_images": 16,
            "exact_images": 10,
        }
        return replace(self, **{name: max(1, min(getattr(self, name), n // share)) for name, share in shares.items()})


SETTINGS: dict[str, KnnDknnAttack] = {
    "full": KnnDknnAttack(),
    "quick": KnnDknnAttack(
        dknn_database=10_000,
        clean_images=500,
        outside_images=100,
        knn_images=60,
        dknn_images=16,
        rule_images=30,
        curve_images=8,
        extra_images=8,
        exact_images=5,
        sweep_images=10,
        epochs=1,
        learning_rate=2e-3,
        one_cycle=True,
        search_steps=3,
        steps=100,
        linf_steps=100,
        rule_search_steps=5,
        rule_steps=100,
        margin_targets=1,
        dknn_margin_steps=100,
        credible_steps=60,
        epsilons=(0.1, 0.2, 0.3),
        robust_train_images=10_000,
        robust_epochs=1,
        robust_steps=2,
        sweep_guides=(10, 75, 150),
        sweep_k=(5, 75),
        sweep_steps=(25, 100),
        temperatures=(0.1,),
    ),
    "smoke": KnnDknnAttack(
        knn_database=2_000,
        dknn_database=2_000,
        clean_images=40,
        outside_images=10,
        knn_images=6,
        dknn_images=4,
        rule_images=4,
        curve_images=4,
        extra_images=4,
        exact_images=2,
        sweep_images=4,
        train_images=2_000,
        test_images=500,
        epochs=2,
        learning_rate=2e-3,
        one_cycle=True,
        search_steps=2,
        steps=10,
        linf_steps=20,
        rule_search_steps=2,
        rule_steps=20,
        margin_steps=40,
        margin_targets=1,
        dknn_margin_steps=40,
        epsilons=(0.1, 0.3),
        credible_steps=20,
        robust_train_images=500,
        robust_epochs=1,
        robust_steps=1,
        sweep_guides=(25, 75),
        sweep_k=(5, 75),
        sweep_steps=(20, 40),
        temperatures=(0.1,),
    ),
}
