"""Networks of the papers, and access to the activations of any network."""

from deepneighbors.networks.layers import activations, check_layers
from deepneighbors.networks.mnist_cnn import MnistCNN

__all__ = ["MnistCNN", "activations", "check_layers"]
