"""Updates of which some parameters make only a part."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["hold_back"]


def hold_back(after: Sequence[Tensor], before: Sequence[Tensor], gates: Sequence[Tensor]) -> None:
    """Multiplies the update by the gates in place: `after ← before + gate · (after - before)`.

    The result is bit for bit `before` at gate 0 and `after` at gate 1, because `lerp` is exact at both ends.

    Args:
        after: parameters after the update.
        before: parameters before the update.
        gates: factors in [0, 1], each broadcastable to the shape of its parameter.
    """
    for new, old, gate in zip(after, before, gates, strict=True):
        torch.lerp(old, new, gate, out=new)
