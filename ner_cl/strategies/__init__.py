"""Continual learning strategies, one per file. Importing this package registers the built-in ones."""

from ner_cl.strategies.agem import Agem
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.bias_correction import BiasCorrection
from ner_cl.strategies.cfner import Cfner
from ner_cl.strategies.constraints import Constraint, HalfSpace, InputSubspace, Subspace
from ner_cl.strategies.cpfd import Cpfd
from ner_cl.strategies.das import Das
from ner_cl.strategies.distill import Distill
from ner_cl.strategies.ewc import Ewc
from ner_cl.strategies.finetune import Finetune
from ner_cl.strategies.frozen import Frozen
from ner_cl.strategies.frozen_trunk import FrozenTrunk
from ner_cl.strategies.gem import Gem
from ner_cl.strategies.gpm import Gpm
from ner_cl.strategies.hat import HatStrategy
from ner_cl.strategies.ice import Ice
from ner_cl.strategies.is3 import Is3
from ner_cl.strategies.joint import Joint
from ner_cl.strategies.logit_adjustment import LogitAdjustment
from ner_cl.strategies.lwf import Lwf
from ner_cl.strategies.modules import ModuleStrategy
from ner_cl.strategies.ncl import Ncl
from ner_cl.strategies.ogd import Ogd
from ner_cl.strategies.packnet import PackNetStrategy
from ner_cl.strategies.rdp import Rdp
from ner_cl.strategies.replay import Replay
from ner_cl.strategies.self_training import SelfTraining
from ner_cl.strategies.slda import Slda
from ner_cl.strategies.spg import Spg
from ner_cl.strategies.weight_average import WeightAverage

__all__ = [
    "Agem",
    "BiasCorrection",
    "Cfner",
    "Constraint",
    "Cpfd",
    "Das",
    "Distill",
    "Ewc",
    "Finetune",
    "Frozen",
    "FrozenTrunk",
    "Gem",
    "Gpm",
    "HalfSpace",
    "HatStrategy",
    "Ice",
    "InputSubspace",
    "Is3",
    "Joint",
    "LogitAdjustment",
    "Lwf",
    "ModuleStrategy",
    "Ncl",
    "Ogd",
    "PackNetStrategy",
    "Rdp",
    "Replay",
    "SelfTraining",
    "Slda",
    "Spg",
    "StepContext",
    "Strategy",
    "Subspace",
    "WeightAverage",
]
