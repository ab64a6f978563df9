"""The network of the 2021 report by matrix products and minimal filtering: the same function, trained more than twice as
fast on a CPU.

Almost all work of :class:`MnistCNN` is its second convolution, 6 x 6 with stride 2 on 14 x 14. Split by parity of rows and
columns it is one of 3 x 3 taps with stride 1 on 7 x 7 with four times the channels, whose 5 x 5 outputs are a single tile
of Toom and Cook's algorithm (Winograd 1980, *Arithmetic Complexity of Computations*; Lavin and Gray 2016): 49 products a
pair of channels in place of 225 for outputs and taps, each step a product of large matrices.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.networks.mnist_cnn import MnistCNN

Matrix = list[list[Fraction]]
_POINTS = (0, 1, -1, 2, -2, Fraction(1, 2))  # small, so that single precision loses little more than a plain convolution
_OUT, _TAPS, _TILE = 5, 3, 7  # of the second convolution, in each direction
_IMAGE = (1, 28, 28)


def filter_matrices(outputs: int, taps: int, points: Sequence[Fraction | int]) -> tuple[Matrix, Matrix, Matrix]:
    """Matrices A, G, B with ``y = A ((G g) * (B d))`` for the correlation ``y[i] = sum_j g[j] d[i + j]``.

    Shapes: A (outputs, n), G (n, taps), B (n, n) with ``n = outputs + taps - 1`` products, exact. Toom and Cook: polynomials
    are evaluated at ``n - 1`` different ``points`` and at infinity, multiplied there, and interpolated; transposed, that is
    a correlation.
    """
    checks.whole("outputs", outputs, 1)
    checks.whole("taps", taps, 1)
    values, wanted = [Fraction(point) for point in points], outputs + taps - 2
    if not len(values) == len(set(values)) == wanted:
        raise InputError(f"points are {', '.join(map(str, values))}; {wanted} different ones are needed")
    others = [[other for other in values if other != point] for point in values]
    scale = [_evaluate(_from_roots(rest), point) for point, rest in zip(values, others, strict=True)]
    zero, one = [Fraction(0)], [Fraction(1)]
    a = [[point**i for point in values] + (one if i == outputs - 1 else zero) for i in range(outputs)]
    g = [[point**j / s for j in range(taps)] for point, s in zip(values, scale, strict=True)]
    b = [_from_roots(rest) + zero for rest in others]
    return a, [*g, zero * (taps - 1) + one], [*b, _from_roots(values)]


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, constant first."""
    found = [Fraction(1)]
    for root in roots:
        found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found


def _evaluate(coefficients: Sequence[Fraction], x: Fraction) -> Fraction:
    return sum((c * x**i for i, c in enumerate(coefficients)), Fraction(0))


class FilteredMnistCNN(MnistCNN):
    """:class:`MnistCNN` without padding of its second convolution: the same parameters and logits, faster on a CPU.

    In float32 logits and gradients are within about 4e-6 of their norm of exact ones, where a plain convolution is within
    1e-6. Only ``fc`` of its modules is called, so it has no other named activations: load its ``state_dict`` into a
    :class:`MnistCNN` for those. The constants are as exact as the default type at its construction: ``double()`` later
    makes it no more so.
    """

    _a: Tensor
    _g: Tensor
    _b: Tensor

    def __init__(self, *, classes: int = 10):
        super().__init__(conv2_padding=0, classes=classes)
        for name, matrix in zip("agb", filter_matrices(_OUT, _TAPS, _POINTS), strict=True):
            one = torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)
            both = torch.kron(one, one).to(self.conv2.weight.dtype)  # for rows and columns at once
            self.register_buffer(f"_{name}", both, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, 28, 28)``."""
        if tuple(x.shape[1:]) != _IMAGE:
            raise InputError(f"x has shape {tuple(x.shape)}; images of shape (n, 1, 28, 28) are needed")
        maps = self._relu1(x)
        products = torch.bmm((self._b @ maps.flatten(1)).view(maps.shape), self._filters())
        maps = (self._a @ products.flatten(1)).view(_OUT**2, *products.shape[1:])
        assert self.conv2.bias is not None  # as its type allows
        maps = (maps + self.conv2.bias).relu_().transpose(0, 1).flatten(1)
        weight = self.conv3.weight.permute(0, 2, 3, 1).flatten(1)
        return self.fc(linear(maps, weight, self.conv3.bias).relu_())

    def _relu1(self, x: Tensor) -> Tensor:
        """The first layer, ``(49, n, 256)``: places of one parity, images, and parities by channels."""
        padded = pad(x, (3, 3, 3, 3))
        whole, row = padded.shape[2] * padded.shape[3], padded.shape[3]
        # Place, image, parity, pixel; two places of the layer are two pixels apart, and two of one parity four.
        sizes = (_TILE, _TILE, len(x), 2, 2, 8, 8)
        patches = padded.as_strided(sizes, (4 * row, 4, whole, 2 * row, 2, row, 1)).reshape(-1, 64)
        maps = linear(patches, self.conv1.weight.flatten(1), self.conv1.bias).relu_()
        return maps.view(_TILE**2, len(x), 4 * maps.shape[1])

    def _filters(self) -> Tensor:
        """The second convolution at the tile's points, ``(49, 256, 128)``."""
        out, channels = self.conv2.weight.shape[:2]
        by_parity = self.conv2.weight.view(out, channels, _TAPS, 2, _TAPS, 2).permute(2, 4, 3, 5, 1, 0)
        return (self._g @ by_parity.reshape(_TAPS**2, -1)).view(_TILE**2, 4 * channels, out)
