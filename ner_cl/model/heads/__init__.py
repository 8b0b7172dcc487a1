"""Output layers that grow; importing this package registers the built-in heads."""

from ner_cl.model.heads.addner import AddNer
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.extendner import ExtendNer
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.heads.spankl import SpanKl

__all__ = ["AddNer", "DistillOptions", "Emissions", "ExtendNer", "Head", "SpanKl"]
