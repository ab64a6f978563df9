"""Access to the activations of any network by the names of its modules."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.errors import InputError


class _AllCaptured(Exception):
    """Ends a forward pass once every wanted activation is known."""


def check_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """Refuse layers that the network does not have, and a layer named twice."""
    known = [name for name, _ in network.named_modules() if name]
    if not layers:
        raise InputError(f"layers is empty; name at least one of {', '.join(known)}")
    for layer in layers:
        checks.one_of("layer", layer, known)
        if list(layers).count(layer) > 1:
            raise InputError(f"layer {layer!r} is named twice in layers; name each once")


def activations(network: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of the named modules for a batch, in the order asked for; differentiable with respect to ``x``.

    The forward pass ends at the last layer that is wanted, so early layers are cheap. Of a module that is called more than
    once the first output counts, and an output is kept as the module made it, even if a later module changes it in place:
    the answer for a layer does not depend on which others are asked for.

    Returns
    -------
    Layer name -> activation ``(n, ...)``.

    Raises
    ------
    InputError
        A module that is never called, or whose output is not one tensor.
    """
    check_layers(network, layers)
    modules = dict(network.named_modules())
    found: dict[str, Tensor] = {}

    def capture(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if name in found:
                return
            if not isinstance(output, Tensor):
                raise InputError(f"layer {name!r} returns a {type(output).__name__}; only one tensor a layer is supported")
            last = len(found) + 1 == len(layers)
            found[name] = output if last else output.clone()
            if last:
                raise _AllCaptured

        return hook

    handles = [modules[name].register_forward_hook(capture(name)) for name in layers]
    try:
        network(x)
    except _AllCaptured:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in found:
            raise InputError(f"layer {name!r} is never called in the network's forward pass; name one that is")
    return {name: found[name] for name in layers}
