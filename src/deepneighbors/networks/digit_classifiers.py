"""Small classifiers of 28 x 28 digits, unlike one another, between which adversarial examples are passed.

Each maps images ``(n, 1, 28, 28)`` in [0, 1] to logits ``(n, classes)``, and names in ``layers`` the modules whose
outputs count as its layers, in forward order; the last are the logits. Weights start as torch starts them.
"""

from torch import Tensor, nn


class DeepCNN(nn.Module):
    """Six 3 x 3 convolutions with batch norm and ReLU, 16-16-32-32-64-64 channels, a pool after every second one.

    Layer ``b1c0`` is the first convolution of the second block after its batch norm and ReLU: 16 x 28 x 28 in block 0,
    32 x 14 x 14 in block 1, 64 x 7 x 7 in block 2. 77,786 parameters for ten classes.
    """

    layers = ("b0c0", "b0c1", "b1c0", "b1c1", "b2c0", "b2c1", "fc")

    def __init__(self, *, classes: int = 10):
        super().__init__()
        channels = 1
        for block, width in enumerate((16, 32, 64)):
            for place in range(2):
                self.add_module(f"b{block}c{place}", _convolution(channels, width))
                channels = width
            self.add_module(f"pool{block}", nn.MaxPool2d(2))
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * 3 * 3, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, 28, 28)``."""
        for module in self.children():
            x = module(x)
        return x


def _convolution(channels: int, width: int) -> nn.Sequential:
    """The shift of batch norm serves as the convolution's bias."""
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


class PooledCNN(nn.Module):
    """Two 3 x 3 convolutions of 32 and 64 channels, each with ReLU and a pool, and 128 hidden units.

    Layers ``relu1`` (32 x 28 x 28), ``relu2`` (64 x 14 x 14), ``relu3`` (128) and ``fc``. 421,642 parameters.
    """

    layers = ("relu1", "relu2", "relu3", "fc")

    def __init__(self, *, classes: int = 10):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.hidden, self.relu3 = nn.Linear(64 * 7 * 7, 128), nn.ReLU()
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, 28, 28)``."""
        for module in self.children():
            x = module(x)
        return x


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pools, and a linear layer in place of its radial basis functions.

    Layers ``relu1`` (6 x 28 x 28), ``relu2`` (16 x 10 x 10), ``relu3`` (120), ``relu4`` (84) and ``fc``. 61,706 parameters.
    """

    layers = ("relu1", "relu2", "relu3", "relu4", "fc")

    def __init__(self, *, classes: int = 10):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.hidden1, self.relu3 = nn.Linear(16 * 5 * 5, 120), nn.ReLU()
        self.hidden2, self.relu4 = nn.Linear(120, 84), nn.ReLU()
        self.fc = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, 28, 28)``."""
        for module in self.children():
            x = module(x)
        return x


class MLP(nn.Module):
    """Two hidden layers of 300 and 100 units on the pixels, as the 300-100 net of LeCun et al. (1998), with ReLU.

    Layers ``relu1`` (300), ``relu2`` (100) and ``fc``. 266,610 parameters.
    """

    layers = ("relu1", "relu2", "fc")

    def __init__(self, *, classes: int = 10):
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden1, self.relu1 = nn.Linear(28 * 28, 300), nn.ReLU()
        self.hidden2, self.relu2 = nn.Linear(300, 100), nn.ReLU()
        self.fc = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, 28, 28)``."""
        for module in self.children():
            x = module(x)
        return x
