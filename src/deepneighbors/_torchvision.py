"""Import torchvision beside any build of torch.

A CPU-only torch beside the package index's torchvision fails at import with ``operator torchvision::nms does not
exist``: torchvision registers shape functions for two compiled operators that such a pair lacks. Declaring their
schemas lets the import pass; nothing here calls the operators.
"""

import importlib
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARY = None  # the declarations live as long as this object


def torchvision() -> ModuleType:
    """Return the torchvision package, with the missing schemas declared only when the import fails without them."""
    global _LIBRARY
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _LIBRARY.define(schema)
    return importlib.import_module("torchvision")
