"""The thin pre-activation ResNet that the code of Cohen, Sapiro & Giryes (2020) trains, with three kinds of batch norm."""

from torch import Tensor, nn
from torch.nn import functional

from deepneighbors import checks

STATISTICS = ("running", "batch", "instance")


class Normalization(nn.BatchNorm2d):
    """Batch norm whose statistics outside training can be chosen; see :class:`ThinResNet`."""

    def __init__(self, channels: int, statistics: str):
        super().__init__(channels, eps=1e-3)
        self.statistics = statistics

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images ``(n, channels, height, width)``."""
        if self.training or self.statistics == "running":
            return super().forward(x)
        if self.statistics == "batch":
            return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class ThinResNet(nn.Module):
    """32 weighted layers of 16, 32 and 64 channels, with a 64-dimensional embedding, for 32 x 32 images.

    The paper calls it ResNet-34. It has 464,154 parameters for 10 classes and 470,004 for 100. MNIST's grey 28 x 28 digits
    are padded to 32 x 32 with ``channels=1``.

    ``layers`` names the 33 activations that the released code exports, from the stem to the logits ``fc``; ``embedding`` is
    the pooled one before the linear layer.

    Parameters
    ----------
    classes, channels
        Labels, and channels of an image.
    statistics
        Of batch norm in evaluation mode: ``running`` averages (an image's output depends on the image alone), ``batch``
        (those of the batch at hand, as the released code always does), or ``instance`` (those of each image, which is what
        ``batch`` is for a batch of one). The weights are the same.
    blocks
        Residual blocks of each of the three stages; 5 in the paper.
    """

    def __init__(self, *, classes: int = 10, channels: int = 3, statistics: str = "running", blocks: int = 5):
        super().__init__()
        checks.whole("classes", classes, 2)
        checks.whole("channels", channels, 1)
        checks.whole("blocks", blocks, 1)
        checks.one_of("statistics", statistics, STATISTICS)
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = Normalization(16, statistics)
        self.relu = nn.ReLU()
        self.blocks = nn.ModuleList()
        width = 16
        for stage, wider in enumerate((16, 32, 64)):
            for block in range(blocks):
                first = stage == block == 0
                self.blocks.append(_Block(width, wider, statistics, activate=not first))
                width = wider
        self.last_norm = Normalization(64, statistics)
        self.last_relu = nn.ReLU()
        self.embedding = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(64, classes)
        self.layers = ("relu", *self._block_layers(), "last_relu", "embedding", "fc")
        self._start()

    def _block_layers(self) -> list[str]:
        return [
            f"blocks.{i}.{relu}"
            for i, block in enumerate(self.blocks)
            for relu in ("relu1", "relu2")
            if hasattr(block, relu)
        ]

    def _start(self) -> None:
        """Glorot uniform convolutions; uniform weights of variance 1 / 64 and zero biases in the linear layer."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        bound = (3 / self.fc.in_features) ** 0.5
        nn.init.uniform_(self.fc.weight, -bound, bound)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, channels, height, width)`` in [0, 1], padded with zeros to 32 x 32."""
        missing = 32 - x.shape[-1]
        if missing > 0:
            x = functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        x = self.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        x = self.last_relu(self.last_norm(x))
        return self.fc(self.embedding(x))


class _Block(nn.Module):
    """Two convolutions, each after batch norm and ReLU, beside a shortcut from the raw input.

    A wider block halves the resolution: the shortcut is averaged over 2 x 2 pixels and gets channels of zeros on both sides.
    The very first block's input is active already, so it starts with its convolution.
    """

    def __init__(self, width: int, wider: int, statistics: str, *, activate: bool):
        super().__init__()
        self.activate = activate
        self.stride, self.extra = (2, (wider - width) // 2) if wider > width else (1, 0)
        if activate:
            self.norm1, self.relu1 = Normalization(width, statistics), nn.ReLU()
        # With stride 2, TensorFlow pads "same" on the right and below only.
        self.pad = nn.ZeroPad2d((0, 1, 0, 1) if self.stride == 2 else 1)
        self.conv1 = nn.Conv2d(width, wider, 3, stride=self.stride, bias=False)
        self.norm2, self.relu2 = Normalization(wider, statistics), nn.ReLU()
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(x)) if self.activate else x
        inner = self.conv2(self.relu2(self.norm2(self.conv1(self.pad(inner)))))
        if self.stride == 2:
            x = functional.pad(functional.avg_pool2d(x, 2), (0, 0, 0, 0, self.extra, self.extra))
        return x + inner


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters for an optimiser: ``weight_decay`` on convolution and linear weights, none on norms and biases."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def pooled(activation: Tensor) -> Tensor:
    """Feature vector ``(n, channels)`` of an activation: maps ``(n, channels, height, width)`` are averaged over pixels."""
    return activation.mean((2, 3)) if activation.ndim == 4 else activation.flatten(1)
