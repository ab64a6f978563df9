"""MNIST by its checksum, damaged and prepared data, the paper's split, and training."""

import gzip
import hashlib
import shutil

import numpy as np
import pytest
import torch

from deepneighbors import data, paths, splits
from deepneighbors.errors import InputError
from deepneighbors.networks import MnistCNN
from deepneighbors.training import accuracy, fit_classifier, pgd_l2


def test_mnist_is_complete():
    digits = data.load("mnist")
    assert digits.x_train.shape == (60_000, 1, 28, 28) and digits.x_test.shape == (10_000, 1, 28, 28)
    assert torch.bincount(digits.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(digits.x_train.mean()) == pytest.approx(0.1307, abs=1e-4)


def test_split_is_that_of_the_released_code():
    calibration, attacked = splits.calibration_split(data.load("mnist").y_test)

    def digest(indices):
        return hashlib.sha256(indices.numpy().astype("<i4").tobytes()).hexdigest()

    assert digest(attacked) == "782990120124c62d19c35ce738c524f660efcf962f27ccea85d921e06e049b5b"
    assert digest(calibration) == "098d2a673948800872fd55c5c5e877a9d256c941f799151f96121a68d76b3d64"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder of its own, with a copy of MNIST."""
    shutil.copytree(paths.ROOT / "data" / "mnist", tmp_path / "mnist")
    monkeypatch.setenv("DEEPNEIGHBORS_DATA", str(tmp_path))
    return tmp_path


def test_damaged_mnist_is_refused_with_the_remedy(folder):
    path = folder / "mnist" / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[100] ^= 1
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(InputError, match="published MD5 .*git checkout"):
        data.load("mnist")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be unpacked"):
        data.load("mnist")
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        data.load("mnist")


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_any_flipped_byte_of_mnist_is_found(folder, position):
    path = folder / "mnist" / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[int(position * len(raw))] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz (cannot be unpacked|does not have).*git checkout"):
        data.load("mnist")


@pytest.mark.parametrize("position", [0.05, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_prepared_sets_are_refused(folder, position, damage):
    write(folder)
    path = folder / "svhn.npz"
    raw = bytearray(path.read_bytes())
    at = int(position * len(raw))
    if damage == "flip":
        raw[at] ^= 0xFF
    path.write_bytes(bytes(raw if damage == "flip" else raw[:at]))
    with pytest.raises(InputError, match="svhn.npz is damaged"):
        data.load("svhn")


def write(folder, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), "y_train": np.arange(20) % 10,
        "x_test": rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8), "y_test": np.arange(10),
    } | changes  # fmt: skip
    np.savez(folder / "svhn.npz", **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_prepared_set_is_read(folder):
    arrays = write(folder)
    read = data.load("svhn")
    assert read.x_train.shape == (20, 3, 32, 32)
    assert float(read.x_train[3, 1, 5, 6]) == pytest.approx(arrays["x_train"][3, 5, 6, 1] / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "has no array y_test"),
        ({"x_test": np.zeros((10, 32, 32, 3))}, "type float64"),
        ({"y_test": np.arange(9)}, "9 labels for 10 samples"),
    ],
)
def test_wrong_prepared_sets_are_refused(folder, changes, message):
    write(folder, **changes)
    with pytest.raises(InputError, match=message):
        data.load("svhn")


def test_unknown_set_is_refused():
    with pytest.raises(InputError, match="dataset is 'mnits'; allowed are mnist, cifar10"):
        data.load("mnits")


def test_fingerprint_ignores_order_but_not_labels():
    digits = data.load("mnist")
    x, y = digits.x_test[:50], digits.y_test[:50]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    base = data.Dataset("a", x, y, x, y).fingerprint
    assert data.Dataset("a", x[order], y[order], x, y).fingerprint == base
    swapped = y.clone()
    swapped[[0, 1]] = y[[1, 0]]
    assert data.Dataset("a", x, swapped, x, y).fingerprint != base


def test_training_learns_and_repeats():
    digits = data.load("mnist")
    scores, weights = [], []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = MnistCNN()
        fit_classifier(network, digits.x_train[:2000], digits.y_train[:2000], epochs=2, learning_rate=2e-3, one_cycle=True)
        scores.append(accuracy(network, digits.x_test[:500], digits.y_test[:500]))
        weights.append(network.fc.weight.detach())
    assert scores[0] > 0.85
    assert torch.equal(*weights)


def test_epochs_are_reported_in_evaluation_mode():
    digits, seen = data.load("mnist"), []
    network = MnistCNN()
    fit_classifier(
        network,
        digits.x_train[:64],
        digits.y_train[:64],
        epochs=2,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        after_epoch=lambda epoch, solver: seen.append((epoch, network.training, solver.param_groups[0]["lr"])),
    )
    assert seen == [(1, False, 0.5), (2, False, 0.5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs is 0"), ({"batch_size": 0}, "batch_size is 0"), ({"device": "gpu"}, "device is 'gpu'")],
)
def test_bad_training_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fit_classifier(MnistCNN(), torch.zeros(4, 1, 28, 28), torch.zeros(4).long(), **({"epochs": 1} | options))


def test_pgd_stays_in_the_ball_and_raises_the_loss():
    digits = data.load("mnist")
    x, y = digits.x_test[:32], digits.y_test[:32]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MnistCNN()
    fit_classifier(network, digits.x_train[:640], digits.y_train[:640], epochs=1, learning_rate=2e-3)
    moved = pgd_l2(epsilon=1.5, steps=5, step_size=0.5)(network, x, y)
    assert ((moved - x).flatten(1).norm(dim=1) <= 1.5 + 1e-5).all()
    assert moved.min() >= 0 and moved.max() <= 1
    loss = torch.nn.functional.cross_entropy
    assert loss(network(moved), y) > loss(network(x), y) + 0.1


def fake(name, train, test=50, classes=10):
    x = torch.zeros(1, 1, 1, 1).expand(max(train, test), 1, 1, 1)
    labels = torch.arange(max(train, test)) % classes
    return data.Dataset(name, x[:train], labels[:train], x[:test], labels[:test])


def test_validation_images_are_stratified_and_apart():
    found = splits.validation_split(fake("cifar10", 50_000), validation=1000)
    labels = torch.arange(50_000) % 10
    assert torch.bincount(labels[found.validation]).tolist() == [100] * 10
    together = torch.cat([found.train, found.validation]).sort().values
    assert torch.equal(together, torch.arange(50_000)) and len(found.test) == 50
    assert (found.train.diff() > 0).all() and (found.validation.diff() > 0).all()


def test_official_svhn_is_drawn_as_in_the_authors_code():
    found = splits.validation_split(fake("svhn", 73_257, 26_032), validation=1000)
    drawn = torch.cat([found.train, found.validation])
    assert int(drawn.sum()) == 1_830_626_341 and int(found.test.sum()) == 129_933_718
    assert found.test[:8].tolist() == [6, 8, 9, 10, 15, 17, 19, 23]


def test_another_copy_of_svhn_is_used_whole():
    found = splits.validation_split(fake("svhn", 4200, 1000), validation=100)
    assert len(found.train) == 4100 and len(found.test) == 1000


def test_a_split_without_room_is_refused():
    with pytest.raises(InputError, match="validation is 9; it must be a whole number from 10 to 90"):
        splits.validation_split(fake("mnist", 100), validation=9)
