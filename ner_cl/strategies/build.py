"""Building strategies from options."""

from collections.abc import Sequence

from ner_cl.config import HeadOptions, StrategyOptions, check_composition, or_default, parse_strategies
from ner_cl.registry import strategies
from ner_cl.strategies.base import Strategy

__all__ = ["build_strategies"]


def build_strategies(options: Sequence[StrategyOptions], head: HeadOptions | None = None) -> list[Strategy]:
    """Builds the strategies of a list of options, sorted by name.

    An empty list means the default for the head. If no strategy of the list preserves old types, the one they stand on
    is added.

    Raises:
        ConfigError: if some of them cannot be combined.
    """
    options = or_default(options, head or HeadOptions())
    check_composition(options)
    classes: list[type[Strategy]] = [strategies[item.name] for item in options]
    if not any(class_.holds_old_types for class_ in classes):
        # `distill`, unless all of them stand on the same other strategy.
        grounds = {class_.stands_on for class_ in classes}
        options = [*options, *parse_strategies([grounds.pop() if len(grounds) == 1 else "distill"])]
    return [strategies[item.name](item) for item in sorted(options, key=lambda item: item.name)]
