"""Splits of the data sets as the papers made them."""

from deepneighbors.splits.calibration import calibration_split
from deepneighbors.splits.validation import Split, validation_split

__all__ = ["Split", "calibration_split", "validation_split"]
