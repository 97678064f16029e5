"""Networks built without drawing their first weights at random: those of a file follow at once.

Of ViT-B-32 with its text tower, which open_clip builds too, drawing takes twice as long as reading the file.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from simv0.errors import ModelError
from simv0.vision.files import NAME

DRAWS = {
    Tensor.normal_,
    Tensor.uniform_,
    init.normal_,
    init.uniform_,
    init.trunc_normal_,
    init.kaiming_normal_,
    init.kaiming_uniform_,
    init.xavier_normal_,
    init.xavier_uniform_,
}


class Undrawn(TorchFunctionMode):
    """In a `with` block NaN stands wherever a weight would be drawn, so that one that no file sets cannot be missed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every function of torch comes by here."""
        kwargs = kwargs or {}
        if func not in DRAWS:
            return func(*args, **kwargs)
        weight: Tensor = args[0] if args else kwargs["tensor"]
        with torch.no_grad():
            return weight.fill_(torch.nan) if weight.is_floating_point() else func(*args, **kwargs)


def check_set(network: nn.Module, name: str) -> None:
    """Refuse a network of which a weight was set by no file.

    Raises:
        ModelError: naming the weight.
    """
    for key, weight in network.named_parameters():
        if weight.numel() and weight.flatten()[0].isnan():
            raise ModelError(
                f"{NAME}: {name}: the weight {key} is missing from its weights, or holds NaN: get them anew"
            )
