"""The settings of every chapter at every profile: ``smoke`` for tests, ``quick`` for a laptop, ``full`` as the papers.

Each number of an experiment that a reader may want to change stands here once. Sources: P, the paper and slides of
Sitawarin & Wagner (2019); C, their released code.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from deepneighbors import checks
from deepneighbors.errors import InputError

PROFILES = ("smoke", "quick", "full")


@dataclass(frozen=True)
class KnnDknnAttack:
    """Chapter 1. Every ``*_images`` field counts test digits; :meth:`with_images` caps the attacked ones."""

    datasets: ClassVar[tuple[str, ...]] = ("mnist",)
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


@dataclass(frozen=True)
class NnifDetection:
    """Chapter 2. Sources: P, the paper of Cohen, Sapiro & Giryes (2020); C, their released code; T, their earlier tree.

    A fast attack is made on ``fast_validation`` and ``fast_test`` images, a slow one on the others; :meth:`with_images` caps
    all four.
    """

    datasets: ClassVar[tuple[str, ...]] = ("mnist", "cifar10", "cifar100", "svhn")
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

    def with_images(self, n: int) -> "NnifDetection":
        """The same with at most ``n`` test images of a fast attack, half of that for a slow one, and half to validate."""
        shares = {"fast_test": 1, "slow_test": 2, "fast_validation": 2, "slow_validation": 4, "adaptive_images": 5}
        return replace(self, **{name: max(10, min(getattr(self, name), n // share)) for name, share in shares.items()})


@dataclass(frozen=True)
class PoisoningIla:
    """Chapter 3. Sources: R, the report of 2021; S, the code of secml 0.15.6 and cleverhans 3.1; ours unless named."""

    datasets: ClassVar[tuple[str, ...]] = ("mnist",)
    dataset: str = "mnist"
    # Seeds of networks, poison and attacks are this many, from the run's seed on.
    seeds: int = 5
    # Poisoned MNIST.
    # A linear SVM of two digits: training, validation and test images, iterations a point (S); 50 points (R).
    svm_images: tuple[int, int, int] = (100, 500, 500)
    svm_iterations: int = 100
    svm_points: int = 50
    svm_norms: tuple[str, ...] = ("l1", "l2")
    # Digits, points and norm: secml's tutorial is 5-9-15-l1 (S), the report's poison has the digits 1 and 9 (R).
    classifier_cases: tuple[str, ...] = ("5-9-15-l1", "5-9-15-l2", "1-9-15-l1", "1-9-50-l1", "1-9-50-l2", "5-9-50-l1")
    # The report's network: Adam 1e-3 for 6 epochs in batches of 500 (S). Epochs at which answers are counted.
    cnn_images: int = 60_000
    cnn_epochs: int = 6
    cnn_batch: int = 500
    counted_epochs: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    # DkNN: 75 neighbours a layer (R); the first 750 test images calibrate, the others are evaluated (S).
    neighbors: int = 75
    calibration_images: int = 750
    evaluated_images: int = 9_250
    # Clean training points that poison is compared with; sweep of what the report leaves open.
    clean_points: int = 1_000
    sweep_epochs: tuple[int, ...] = (2, 4, 6)
    sweep_k: tuple[int, ...] = (10, 25, 75, 150)
    # Two digits: 1,000 clean images (R), and 150, whose base rate fits the report's Table 1; batches of 50.
    share_sizes: tuple[int, ...] = (1_000, 150)
    share_epochs: tuple[int, ...] = (6, 20, 40)
    share_seeds: int = 10
    share_queries: int = 2_000
    # A small set on which training goes on until poison is memorised.
    memorised_images: int = 3_000
    memorised_epochs: int = 30
    # Poison of several label pairs, 45 of ten digits.
    label_pairs: int = 45
    pair_points: int = 10
    # Attacks on the training set; rates of backdoors, share of the blended picture.
    poison_attacks: tuple[str, ...] = ("svm_poisoning", "logistic_poisoning", "random_flip", "patch", "blended")
    backdoor_rates: tuple[float, ...] = (0.001, 0.01)
    blend: float = 0.2
    # Points removed for each poisoned one (Tran et al. 2018), and the detectors after which the network is trained anew.
    removal: float = 1.5
    retrained: tuple[str, ...] = ("credibility", "deep_knn", "activation_clustering", "spectral", "loss", "random")
    # Intermediate Level Attack.
    # Networks: Adam, one cycle; small ones take more passes, see experiments.poisoning_ila.sources.
    ila_train_images: int = 60_000
    ila_test_images: int = 10_000
    ila_epochs: int = 2
    ila_sources: tuple[str, ...] = ("mnist_cnn", "deep")
    ila_targets: tuple[str, ...] = ("mnist_cnn", "cnn", "lenet", "mlp", "deep")
    # Test digits that every network of a seed classifies correctly, other ones for each seed; and those that choose a layer.
    ila_images: int = 500
    ila_layer_images: int = 100
    # Linf radii in [0, 1], and the one at which a layer is chosen.
    ila_epsilons: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    ila_layer_epsilon: float = 0.3
    # Steps of ILA after as many of its starting attack, each epsilon / steps long; other attacks take twice as many.
    ila_steps: int = 10
    ila_samples: int = 30  # altered images that FIA and NAA average over
    # DkNN: k of R; training digits of the index; attacked digits, the first of each seed, and their radii.
    ila_k: int = 75
    ila_database: int = 10_000
    ila_credibility_images: int = 300
    ila_credibility_epsilons: tuple[float, ...] = (0.1, 0.2, 0.3)

    def with_images(self, n: int) -> "PoisoningIla":
        """The same with at most ``n`` attacked images."""
        capped = ("ila_images", "ila_credibility_images")
        return replace(self, **{name: min(getattr(self, name), n) for name in capped})


def changed(settings: Any, changes: Iterable[str]) -> Any:
    """Settings with some changed, each given as text: ``epochs=30``, ``one_cycle=true``, ``attacks=fgsm,pgd``.

    Raises
    ------
    InputError
        A name that is no setting, or a value of another type.
    """
    hints, known = get_type_hints(type(settings)), [field.name for field in fields(settings) if field.name != "dataset"]
    for change in changes:
        name, equals, text = change.partition("=")
        checks.one_of("setting", name, known)
        try:
            if not equals:
                raise ValueError
            settings = replace(settings, **{name: _read(hints[name], text)})
        except ValueError:
            shown = ",".join(map(str, value)) if isinstance(value := getattr(settings, name), tuple) else value
            raise InputError(f"setting {change!r} cannot be read; give it like {name}={shown}") from None
    return settings


def _read(kind: Any, text: str) -> Any:
    """A value of a type from text; a tuple's are parted by commas, and ``none`` stands for None."""
    allowed = get_args(kind)
    if get_origin(kind) is tuple:
        values = tuple(_read(allowed[0], part) for part in text.split(","))
        if allowed[-1] is not Ellipsis and len(values) != len(allowed):
            raise ValueError
        return values
    if type(None) in allowed:
        return None if text.lower() == "none" else _read(allowed[0], text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return kind(text)


SETTINGS: dict[str, dict[str, Any]] = {
    "knn_dknn_attack": {
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
    },
    "nnif_detection": {
        "full": NnifDetection(),
        "quick": NnifDetection(
            dataset="mnist",
            train_images=6_000,
            validation_images=300,
            fast_validation=100,
            fast_test=200,
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
            dknn_k=(0.02, 0.2, 0.8),
            lid_k=(10, 20, 40),
            epsilons=(1e-4, 1e-3, 1e-2),
            sizes=(10, 50, 200),
            estimator_queries=10,
            estimator_training=400,
            lissa=(1, 2, 100),
            adaptive_images=25,
            adaptive_steps=100,
            subset=1_000,
        ),
        "smoke": NnifDetection(
            dataset="mnist",
            train_images=2_000,
            validation_images=100,
            fast_validation=40,
            fast_test=40,
            slow_validation=25,
            slow_test=25,
            blocks=1,
            epochs=3,
            one_cycle=True,
            modes=("clean",),
            view_attacks=("deepfool",),
            ablation_attacks=("deepfool",),
            search_steps=1,
            steps=10,
            dknn_k=(0.2, 0.8),
            lid_k=(5, 8),
            epsilons=(1e-4, 1e-2),
            sizes=(10, 50),
            helpful=20,
            estimator_queries=4,
            estimator_training=200,
            lissa=(1, 1, 50),
            adaptive_images=10,
            adaptive_steps=30,
            subset=500,
        ),
    },
    "poisoning_ila": {
        "full": PoisoningIla(),
        "quick": PoisoningIla(
            seeds=2,
            # Poisoned MNIST.
            classifier_cases=("5-9-15-l1", "1-9-15-l1"),
            cnn_images=2_000,
            cnn_epochs=3,
            cnn_batch=50,
            counted_epochs=(1, 3),
            calibration_images=500,
            evaluated_images=500,
            clean_points=300,
            sweep_epochs=(1, 3),
            sweep_k=(25, 75),
            svm_norms=("l1",),
            share_epochs=(8,),
            share_seeds=2,
            share_queries=200,
            memorised_images=500,
            memorised_epochs=20,
            label_pairs=4,
            poison_attacks=("svm_poisoning", "patch"),
            backdoor_rates=(0.01,),
            retrained=("credibility", "random"),
            # Intermediate Level Attack.
            ila_train_images=10_000,
            ila_test_images=2_000,
            ila_epochs=1,
            ila_images=80,
            ila_layer_images=30,
            ila_epsilons=(0.3,),
            ila_samples=10,
            ila_database=4_000,
            ila_credibility_images=60,
            ila_credibility_epsilons=(0.3,),
        ),
        "smoke": PoisoningIla(
            seeds=1,
            # Poisoned MNIST.
            svm_images=(40, 60, 40),
            svm_iterations=4,
            svm_points=10,
            svm_norms=("l1",),
            classifier_cases=("1-9-15-l1",),
            cnn_images=500,
            cnn_epochs=2,
            cnn_batch=50,
            counted_epochs=(1, 2),
            neighbors=20,
            calibration_images=60,
            evaluated_images=150,
            clean_points=40,
            sweep_epochs=(1, 2),
            sweep_k=(5, 20),
            share_sizes=(100,),
            share_epochs=(1, 2),
            share_seeds=1,
            share_queries=30,
            memorised_images=200,
            memorised_epochs=3,
            label_pairs=2,
            pair_points=3,
            poison_attacks=("svm_poisoning", "patch"),
            backdoor_rates=(0.02,),
            retrained=("credibility",),
            # Intermediate Level Attack.
            ila_train_images=1_500,
            ila_test_images=500,
            ila_epochs=2,
            ila_images=20,
            ila_layer_images=20,
            ila_epsilons=(0.3,),
            ila_steps=4,
            ila_samples=3,
            ila_k=25,
            ila_database=1_000,
            ila_credibility_images=20,
            ila_credibility_epsilons=(0.3,),
        ),
    },
}
