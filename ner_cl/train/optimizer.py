"""The optimizer of one step and its learning-rate schedule."""

from typing import Any

import torch
from torch import nn

from ner_cl.config import OptimizerOptions
from ner_cl.model.ner_model import NerModel

__all__ = ["make_optimizer", "rate_factor"]


def make_optimizer(model: NerModel, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Creates an optimizer for the trainable parameters of encoder, head and sub-networks.

    Biases and normalisation weights have no weight decay. AdamW is fused: the default implementation is several times
    slower for an encoder whose parameters are mostly embeddings.
    """
    groups: list[dict[str, Any]] = []
    parts: list[tuple[nn.Module, float]] = [(model.encoder, options.lr), (model.head, options.head_lr)]
    if model.subnetworks is not None:
        rates = {"encoder": options.lr, "head": options.head_lr}
        parts.append((model.subnetworks, rates[model.subnetworks.learns_like]))
    for module, rate in parts:
        decayed, spared = _split(module)
        groups.append({"params": decayed, "lr": rate, "peak": rate, "weight_decay": options.weight_decay})
        groups.append({"params": spared, "lr": rate, "peak": rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def rate_factor(update: int, updates: int, warmup: float) -> float:
    """Share of the peak rate at an update (from 0): a linear rise over `warmup`, then a linear fall to 0 at the end."""
    rise = round(warmup * updates)
    if update < rise:
        return (update + 1) / (rise + 1)
    return (updates - update) / max(1, updates - rise)


def _split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with and without weight decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
