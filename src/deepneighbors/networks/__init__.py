"""Networks of the papers, and access to the activations of any network."""

from deepneighbors.networks.digit_classifiers import MLP, DeepCNN, LeNet, PooledCNN
from deepneighbors.networks.layers import activations, check_layers
from deepneighbors.networks.minimal_filtering import FilteredMnistCNN
from deepneighbors.networks.mnist_cnn import MnistCNN
from deepneighbors.networks.thin_resnet import ThinResNet

__all__ = [
    "DeepCNN", "FilteredMnistCNN", "LeNet", "MLP", "MnistCNN", "PooledCNN", "ThinResNet", "activations", "check_layers",
]  # fmt: skip
