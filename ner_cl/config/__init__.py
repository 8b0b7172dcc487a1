"""The configuration of a run: strict, frozen and complete.

Values come, in order of precedence, from the command line (`--set a.b=c`), the environment (`NER_CL__A__B=c`), the
file and the defaults. An unknown key is an error that suggests the closest valid one.
"""

from ner_cl.config.base import Options
from ner_cl.config.composition import (
    DEFAULT_STRATEGIES,
    HeadOptions,
    StrategyOptions,
    check_composition,
    check_head,
    check_optimizer,
    or_default,
    parse_strategies,
)
from ner_cl.config.reading import assign, assign_all, flatten, load_config, parse_config, with_values
from ner_cl.config.sections import (
    Config,
    CorpusOptions,
    EarlyStoppingOptions,
    EncoderOptions,
    GateOptions,
    OptimizerOptions,
    StreamOptions,
    TrainingOptions,
)
from ner_cl.config.sweep import SweepOptions
from ner_cl.config.validation import validate

__all__ = [
    "DEFAULT_STRATEGIES",
    "Config",
    "CorpusOptions",
    "EarlyStoppingOptions",
    "EncoderOptions",
    "GateOptions",
    "HeadOptions",
    "OptimizerOptions",
    "Options",
    "StrategyOptions",
    "StreamOptions",
    "SweepOptions",
    "TrainingOptions",
    "assign",
    "assign_all",
    "check_composition",
    "check_head",
    "check_optimizer",
    "flatten",
    "load_config",
    "or_default",
    "parse_config",
    "parse_strategies",
    "validate",
    "with_values",
]
