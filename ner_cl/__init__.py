"""Named entity recognition that keeps learning.

>>> import ner_cl
>>> model = ner_cl.load("models/step2")                                     # doctest: +SKIP
>>> result = ner_cl.learn(model, train="drugs.jsonl", types=["DRUG"])       # doctest: +SKIP
>>> print(result.table); result.model.save("models/step3")                  # doctest: +SKIP
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ner_cl.errors import CheckFailed, ConfigError, DataError, MissingExtra, ModelError, NerClError, TrainingError
from ner_cl.types import Entity, Sentence, Span

if TYPE_CHECKING:
    from ner_cl.config import Config, TrainingOptions, load_config
    from ner_cl.data.readers import read_sentences
    from ner_cl.data.writers import write_sentences
    from ner_cl.evaluate.scores import Scores, score, score_steps
    from ner_cl.model.ner_model import NerModel
    from ner_cl.model.store import load_model as load
    from ner_cl.train.changes import LearnResult
    from ner_cl.train.compact import compact
    from ner_cl.train.learn import learn
    from ner_cl.train.run import Run, run_stream

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
    "Scores",
    "Sentence",
    "Span",
    "TrainingError",
    "TrainingOptions",
    "compact",
    "learn",
    "load",
    "load_config",
    "read_sentences",
    "run_stream",
    "score",
    "score_steps",
    "write_sentences",
]

# Where names that need torch or pydantic are defined. They are imported on first use, so that `ner-cl --help` and
# programs that only read data do not wait seconds for torch.
_LATER = {
    "Config": "ner_cl.config:Config",
    "LearnResult": "ner_cl.train.changes:LearnResult",
    "NerModel": "ner_cl.model.ner_model:NerModel",
    "Run": "ner_cl.train.run:Run",
    "Scores": "ner_cl.evaluate.scores:Scores",
    "TrainingOptions": "ner_cl.config:TrainingOptions",
    "compact": "ner_cl.train.compact:compact",
    "learn": "ner_cl.train.learn:learn",
    "load": "ner_cl.model.store:load_model",
    "load_config": "ner_cl.config:load_config",
    "read_sentences": "ner_cl.data.readers:read_sentences",
    "run_stream": "ner_cl.train.run:run_stream",
    "score": "ner_cl.evaluate.scores:score",
    "score_steps": "ner_cl.evaluate.scores:score_steps",
    "write_sentences": "ner_cl.data.writers:write_sentences",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _LATER:
        raise AttributeError(f"module 'ner_cl' has no attribute {name!r}")
    module, _, attribute = _LATER[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """Lists all public names, whether imported yet or not."""
    return sorted({*globals(), *__all__})
