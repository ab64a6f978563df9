"""Random flips and crops of training batches, vectorised over the batch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deepneighbors import checks


class FlipAndCrop:
    """Left-right flip with probability 1/2, then a crop of the same size from the image padded by reflection.

    Call it as :func:`deepneighbors.training.fit_classifier` does, with the network, images ``(n, channels, height, width)``
    and labels. The labels and the network are not used.

    Parameters
    ----------
    flip
        False for digits, which have a left and a right.
    margin
        Pixels of padding on each side; 4 in the code of Cohen et al. (2020).
    """

    def __init__(self, *, flip: bool = True, margin: int = 4, seed: int = 0):
        checks.whole("margin", margin, 0)
        self.flip, self.margin = flip, margin
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Augmented images of the same shape."""
        count, _, height, width = x.shape
        rows = self._offsets(count) + torch.arange(height)
        columns = self._offsets(count) + torch.arange(width)
        if self.flip:
            flipped = torch.rand(count, generator=self.generator) < 0.5
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        padded = pad(x, (self.margin,) * 4, mode="reflect") if self.margin else x
        images = torch.arange(count)[:, None, None, None].to(x.device)
        channels = torch.arange(x.shape[1])[None, :, None, None].to(x.device)
        return padded[images, channels, rows[:, None, :, None].to(x.device), columns[:, None, None, :].to(x.device)]

    def _offsets(self, count: int) -> Tensor:
        return torch.randint(2 * self.margin + 1, (count, 1), generator=self.generator)
