"""Whether what a strategy kept of earlier steps belongs to the model that it is used with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ner_cl.errors import ModelError

__all__ = ["check_state"]


def check_state(strategy: str, kept: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuses tensors of another model, which might be broadcast or ignored without a word.

    Args:
        strategy: name of the strategy.
        kept: what it kept, in fp32.
        shapes: the shape of everything that it may have kept of this model.

    Raises:
        ModelError: naming the first tensor that does not fit.
    """
    for name, tensor in kept.items():
        if name not in shapes:
            problem = "which the model does not have"
        elif tuple(tensor.shape) != tuple(shapes[name]):
            problem = f"of shape {list(tensor.shape)} instead of {list(shapes[name])}"
        elif tensor.dtype != torch.float32:
            problem = f"of type {str(tensor.dtype).removeprefix('torch.')} instead of float32"
        else:
            continue
        raise ModelError(
            f"strategies: what {strategy} kept of earlier steps is of another model (it has {name}, {problem}); "
            f"restore strategy/{strategy}.safetensors of the model folder, or delete it"
        )
