"""The optimizer of one step and its learning-rate schedule."""

from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from ner_cl.config import OptimizerOptions
from ner_cl.model.ner_model import NerModel

__all__ = ["head_alone", "make_optimizer", "rate_factor", "set_peak_rates", "trains"]

_Part: TypeAlias = Literal["encoder", "head"]

# `head_lr: auto` beside an encoder that trains, and alone: docs/results/defaults.md.
_HEAD_RATE = 1e-3
_HEAD_RATE_ALONE = 1e-2


def make_optimizer(model: NerModel, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Creates an optimizer for the trainable parameters of encoder, head and sub-networks.

    Biases and normalisation weights have no weight decay. AdamW is fused: the default implementation is several times
    slower for an encoder whose parameters are mostly embeddings.
    """
    groups: list[dict[str, Any]] = []
    parts: list[tuple[nn.Module, _Part]] = [(model.encoder, "encoder"), (model.head, "head")]
    if model.subnetworks is not None:
        parts.append((model.subnetworks, model.subnetworks.learns_like))
    rates = _peak_rates(model, options)
    for module, part in parts:
        decayed, spared = _split(module)
        common = {"part": part, "peak": rates[part], "lr": rates[part]}
        groups.append({"params": decayed, **common, "weight_decay": options.weight_decay})
        groups.append({"params": spared, **common, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def set_peak_rates(optimizer: torch.optim.Optimizer, model: NerModel, options: OptimizerOptions) -> None:
    """Sets the peak rates to those for what trains now; strategies may freeze the encoder between two epochs."""
    rates = _peak_rates(model, options)
    for group in optimizer.param_groups:
        group["peak"] = rates[group["part"]]


def head_alone(model: NerModel) -> bool:
    """Whether nothing but the head trains."""
    return not trains(model.encoder) and (model.subnetworks is None or not trains(model.subnetworks))


def trains(module: nn.Module) -> bool:
    """Whether any of a module's parameters trains."""
    return any(parameter.requires_grad for parameter in module.parameters())


def rate_factor(update: int, updates: int, warmup: float) -> float:
    """Share of the peak rate at an update (from 0): a linear rise over `warmup`, then a linear fall to 0 at the end."""
    rise = round(warmup * updates)
    if update < rise:
        return (update + 1) / (rise + 1)
    return (updates - update) / max(1, updates - rise)


def _peak_rates(model: NerModel, options: OptimizerOptions) -> dict[_Part, float]:
    """Peak rates of encoder and head; `head_lr: auto` depends on whether anything but the head trains."""
    automatic = _HEAD_RATE_ALONE if head_alone(model) else _HEAD_RATE
    return {"encoder": options.lr, "head": automatic if options.head_lr == "auto" else options.head_lr}


def _split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with and without weight decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
