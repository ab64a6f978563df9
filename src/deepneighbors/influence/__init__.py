"""Influence of training images on a loss: through the last layer in closed form, and through the whole network."""

from deepneighbors.influence.full_network import FullNetworkInfluence, Recursion
from deepneighbors.influence.index import InfluenceIndex, recall
from deepneighbors.influence.last_layer import LastLayerInfluence
from deepneighbors.influence.operators import Identity, Inverse, Lissa
from deepneighbors.influence.softmax import fit_softmax

__all__ = [
    "FullNetworkInfluence",
    "Identity",
    "InfluenceIndex",
    "Inverse",
    "LastLayerInfluence",
    "Lissa",
    "Recursion",
    "fit_softmax",
    "recall",
]
