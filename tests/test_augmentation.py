"""Each augmented image is one of the flips and crops of its own image, all of them about equally often."""

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from deepneighbors.augmentation import FlipAndCrop
from deepneighbors.errors import InputError

NETWORK = nn.Identity()


def candidates(image, margin, flip):
    padded = pad(image[None], (margin,) * 4, mode="reflect")[0]
    side = image.shape[-1]
    for turned in (False, True) if flip else (False,):
        for top in range(2 * margin + 1):
            for left in range(2 * margin + 1):
                crop = padded[:, top : top + side, left : left + side]
                yield (turned, top, left), crop.flip(2) if turned else crop


@pytest.mark.parametrize("flip", [True, False])
def test_every_image_is_a_flip_and_crop_of_its_own(flip):
    x = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)).repeat(900, 1, 1, 1)
    x[450:] = 1 - x[450:]
    moved = FlipAndCrop(flip=flip, margin=1, seed=3)(NETWORK, x, torch.zeros(900))
    for rows, image in ((moved[:450], x[0]), (moved[450:], x[-1])):
        counts = []
        for _, crop in candidates(image, 1, flip):
            counts.append(int((rows == crop).all(3).all(2).all(1).sum()))
        assert sum(counts) == 450
        expected = 450 / len(counts)
        assert sum((count - expected) ** 2 / expected for count in counts) < 2.5 * len(
            counts
        )  # chi-squared, far in the tail


def test_a_seed_repeats_and_goes_on():
    x, y = torch.rand(8, 3, 8, 8), torch.zeros(8)
    one, two = FlipAndCrop(seed=1), FlipAndCrop(seed=1)
    first = one(NETWORK, x, y)
    assert torch.equal(first, two(NETWORK, x, y))
    assert not torch.equal(first, one(NETWORK, x, y))


def test_a_negative_margin_is_refused():
    with pytest.raises(InputError, match="margin is -1"):
        FlipAndCrop(margin=-1)
