"""Named entity recognition that keeps learning.

>>> import ner_cl
>>> model = ner_cl.load("models/step2")                                     # doctest: +SKIP
>>> result = ner_cl.learn(model, train="drugs.jsonl", types=["DRUG"])       # doctest: +SKIP
>>> print(result.table); result.model.save("models/step3")                  # doctest: +SKIP
"""

from importlib.metadata import PackageNotFoundError, version

from ner_cl.config import Config, TrainingOptions, load_config
from ner_cl.data.readers import read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.errors import CheckFailed, ConfigError, DataError, MissingExtra, ModelError, NerClError, TrainingError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model as load
from ner_cl.train.learn import LearnResult, learn
from ner_cl.train.run import Run, run_stream
from ner_cl.types import Entity, Sentence, Span

try:
    __version__ = version("ner-cl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "CheckFailed",
    "Config",
    "ConfigError",
    "DataError",
    "Entity",
    "LearnResult",
    "MissingExtra",
    "ModelError",
    "NerClError",
    "NerModel",
    "Run",
    "Sentence",
    "Span",
    "TrainingError",
    "TrainingOptions",
    "learn",
    "load",
    "load_config",
    "read_sentences",
    "run_stream",
    "write_sentences",
]
