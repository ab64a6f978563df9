"""The device that work runs on."""

import torch

from deepneighbors.errors import InputError


def resolve(name: str = "auto") -> str:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that exists; ``auto`` is a GPU where there is one.

    Also switches TensorFloat-32 off, so that a GPU ranks neighbours in full single precision.

    Raises
    ------
    InputError
        An unknown name, or a GPU that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # TensorFloat-32 rounds to ten bits, enough to change which neighbour is nearer.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu":
        return name
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit()):
        if int(name[5:] or 0) < count:
            return name
        raise InputError(f"device is {name!r}, but torch sees {count} CUDA devices here; use cpu or auto")
    raise InputError(f"device is {name!r}; allowed are auto, cpu, cuda and cuda:N")
