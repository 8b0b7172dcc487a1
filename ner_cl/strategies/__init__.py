"""Strategies of continual learning, a file each: importing this package registers the built-in ones."""

from ner_cl.strategies.base import Constraint, StepContext, Strategy
from ner_cl.strategies.distill import Distill
from ner_cl.strategies.finetune import Finetune
from ner_cl.strategies.frozen import Frozen
from ner_cl.strategies.joint import Joint
from ner_cl.strategies.self_training import SelfTraining

__all__ = ["Constraint", "Distill", "Finetune", "Frozen", "Joint", "SelfTraining", "StepContext", "Strategy"]
