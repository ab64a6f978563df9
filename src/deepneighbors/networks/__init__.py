"""Networks of the papers, and access to the activations of any network."""

from deepneighbors.networks.layers import activations, check_layers
from deepneighbors.networks.mnist_cnn import MnistCNN
from deepneighbors.networks.thin_resnet import ThinResNet

__all__ = ["MnistCNN", "ThinResNet", "activations", "check_layers"]
