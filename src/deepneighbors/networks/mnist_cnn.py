"""The network of Papernot & McDaniel (2018) for MNIST."""

from torch import Tensor, nn

from deepneighbors import checks


class MnistCNN(nn.Module):
    """The CNN of Papernot & McDaniel (2018): three convolutions with ReLU and one linear layer, for 28 x 28 images.

    Layers ``relu1`` (64 x 14 x 14), ``relu2``, ``relu3`` and ``fc`` (the logits) are its named activations.

    Parameters
    ----------
    conv2_padding
        2 in the form of Sitawarin & Wagner's code (Keras ``SAME``; relu2 is 128 x 7 x 7, relu3 128 x 3 x 3),
        0 in the form of cleverhans and of the 2021 report (128 x 5 x 5 and 128 x 1 x 1).
    """

    layers = ("relu1", "relu2", "relu3", "fc")

    def __init__(self, *, conv2_padding: int = 2, classes: int = 10):
        super().__init__()
        checks.one_of("conv2_padding", conv2_padding, (0, 2))
        side = 3 if conv2_padding == 2 else 1
        self.conv1 = nn.Conv2d(1, 64, 8, stride=2, padding=3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(64, 128, 6, stride=2, padding=conv2_padding)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(128, 128, 5)
        self.relu3 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(128 * side * side, classes)
        self.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, 28, 28)``."""
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x))
        x = self.relu3(self.conv3(x))
        return self.fc(self.flatten(x))


def _glorot(module: nn.Module) -> None:
    """Keras' default start: Glorot uniform weights and zero biases."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
