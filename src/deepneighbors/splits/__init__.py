"""Splits of the data sets as the papers made them."""

from deepneighbors.splits.calibration import calibration_split

__all__ = ["calibration_split"]
