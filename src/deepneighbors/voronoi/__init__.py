"""Certified answers about nearest-neighbour classifiers: the exact optimum for one neighbour, a lower bound for k."""

from deepneighbors.voronoi.bound import lower_bound_knn
from deepneighbors.voronoi.exact import ExactAnswer, minimum_perturbation, minimum_perturbations

__all__ = ["ExactAnswer", "lower_bound_knn", "minimum_perturbation", "minimum_perturbations"]
