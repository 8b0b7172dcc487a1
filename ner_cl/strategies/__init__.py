"""Strategies of continual learning, a file each: importing this package registers the built-in ones."""

from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import Constraint, HalfSpace, InputSubspace, Subspace
from ner_cl.strategies.distill import Distill
from ner_cl.strategies.finetune import Finetune
from ner_cl.strategies.frozen import Frozen
from ner_cl.strategies.joint import Joint
from ner_cl.strategies.self_training import SelfTraining

__all__ = [
    "Constraint",
    "Distill",
    "Finetune",
    "Frozen",
    "HalfSpace",
    "InputSubspace",
    "Joint",
    "SelfTraining",
    "StepContext",
    "Strategy",
    "Subspace",
]
