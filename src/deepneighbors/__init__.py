"""Attacks on nearest neighbours in deep networks, and the classifiers and detectors that they meet."""

__version__ = "0.1.0"
