"""Options of strategies and heads, and checks of which can be combined."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ner_cl.config.base import Options
from ner_cl.config.validation import first_problem
from ner_cl.errors import ConfigError
from ner_cl.registry import heads, nearest, strategies

__all__ = [
    "DEFAULT_STRATEGIES",
    "HeadOptions",
    "StrategyOptions",
    "check_composition",
    "check_head",
    "check_optimizer",
    "default_strategies",
    "isolating",
    "known_name",
    "or_default",
    "parse_strategies",
    "parsed_or_none",
]


class StrategyOptions(Options):
    """Base of every strategy's options; `name` says which strategy."""

    name: str


class HeadOptions(Options):
    """Which head to use, how it initialises new columns and how it is decoded.

    Attributes:
        name: `extendner`, `addner` or `spankl`.
        new_rows: initial weights of a new block: `random` (normal, sd 0.02) or, ExtendNER only, `outside` (the first
            block's `O` row plus that noise, as words of a new type were `O` so far).
        continuation: AddNER with `merge: resolver` only. When a valid continuation in one block meets the beginning of
            a mention in another, the continuation `wins`, or the two `compare` their probabilities (section 3.3 leaves
            it open).
        merge: AddNER only. How blocks are merged: by the paper's `resolver`; by one `viterbi` search over all of them,
            given that at most one names a word; by a weighted `vote` of the blocks that know a type; or by a `majority`
            of those blocks, span by span.
        width: SpanKL only. Size of the two vectors that each word has for each type.
        max_words: SpanKL only. Maximum number of words in a span.
    """

    name: str = "extendner"
    new_rows: Literal["random", "outside"] = "random"
    continuation: Literal["wins", "compare"] = "wins"
    merge: Literal["majority", "resolver", "viterbi", "vote"] = "resolver"
    width: int = Field(50, ge=1, le=4096)
    max_words: int = Field(32, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values

    @field_validator("name")
    @classmethod
    def _known_head(cls, name: str) -> str:
        return known_name(heads, name)

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "HeadOptions":
        for name in self.chosen:
            if name in heads[self.name].without_effect:  # type: ignore[attr-defined]
                raise ValueError(f"{name}: has no effect with head {self.name}; leave it out")
        if "continuation" in self.chosen and self.merge != "resolver":
            raise ValueError(f"continuation: has no effect with merge: {self.merge}; leave it out")
        return self


DEFAULT_STRATEGIES = ("distill", "frozen_trunk", "slda")
"""The strategies used if the list is empty, those that the head can be trained by; see docs/results/defaults.md."""


def default_strategies(head: HeadOptions) -> list[str]:
    """The names of the default strategies for a head."""
    return [name for name in DEFAULT_STRATEGIES if not _refusal(name, head)]


def or_default(options: Sequence[StrategyOptions], head: HeadOptions) -> Sequence[StrategyOptions]:
    """The strategies, or the default ones for the head if the list is empty."""
    return options or parse_strategies(default_strategies(head))


def _refusal(name: str, head: HeadOptions) -> str:
    """Why a strategy with its default options cannot train a head; "" if it can."""
    (options,) = parse_strategies(name)
    refusal: str = strategies[name](options).refuses_head(head)
    return refusal


def parse_strategies(items: Any) -> tuple[StrategyOptions, ...]:
    """Parses strategies, each a name or a mapping with `name`, into options; a single one need not be in a list."""
    if isinstance(items, str | Mapping):
        items = [items]
    if not isinstance(items, list | tuple):
        raise ValueError("write a list of strategies, such as [distill, {name: replay, budget: 0.05}]")
    parsed = []
    for index, item in enumerate(items):
        if isinstance(item, StrategyOptions):
            parsed.append(item)
            continue
        values = {"name": item} if isinstance(item, str) else item
        if not isinstance(values, Mapping) or "name" not in values:
            keys = values if isinstance(values, Mapping) else ()
            named = next((key for key in keys if key in strategies), "distill")
            raise ValueError(f"item {index} needs a name, for instance {{name: {named}}}")
        strategy = strategies[known_name(strategies, str(values["name"]))]
        try:
            parsed.append(strategy.options_class.model_validate(dict(values)))  # type: ignore[attr-defined]
        except ValidationError as error:
            raise ValueError(f"item {index} ({values['name']}): {first_problem(error)}") from error
    names = [options.name for options in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"strategy {name!r} is listed twice; list it once")
    return tuple(parsed)


def check_composition(options: Sequence[StrategyOptions]) -> None:
    """Rejects strategies that cannot be combined.

    Raises:
        ConfigError: with the reason.
    """
    listed: dict[str, Any] = {item.name: strategies[item.name](item) for item in options}
    holding = [name for name, strategy in listed.items() if strategy.holds_old_types]
    if len(holding) > 1:
        raise ConfigError(f"strategies: {' and '.join(holding)} both say how old types are held; keep one of them")
    for name, strategy in listed.items():
        for other, reason in strategy.refuses().items():
            if other in listed:
                raise ConfigError(f"strategies: {name} and {other} cannot be combined: {reason}; keep one of them")


def check_head(options: Sequence[StrategyOptions], head: HeadOptions) -> None:
    """Rejects strategies that cannot train a model with this head.

    Raises:
        ConfigError: with the reason.
    """
    if (name := isolating(options)) and not heads[head.name].apart:  # type: ignore[attr-defined]
        raise ConfigError(
            f"strategies: {name} keeps steps apart, but head {head.name} shares columns between them; use head "
            "addner or spankl"
        )
    for item in options:
        strategy = strategies[item.name](item)
        if reason := strategy.refuses_head(head):
            raise ConfigError(f"strategies: {item.name} {reason}")
        for other in options if heads[head.name].apart else ():  # type: ignore[attr-defined]
            if reason := strategy.excludes_apart.get(other.name, ""):
                raise ConfigError(
                    f"strategies: {item.name} and {other.name} cannot be combined with head {head.name}: {reason}"
                )


def check_optimizer(options: Sequence[StrategyOptions], optimizer: Any) -> None:
    """Rejects `apply_to: gradient` together with a strategy that replaces the optimizer's update.

    Args:
        options: options of the strategies.
        optimizer: an `OptimizerOptions`.

    Raises:
        ConfigError: with the reason.
    """
    for item in options:
        if optimizer.apply_to == "gradient" and strategies[item.name].replaces_optimizer:  # type: ignore[attr-defined]
            raise ConfigError(
                f"training.optimizer.apply_to: gradient holds nothing under {item.name}, whose updates mix and shift "
                "what a mask on the gradient holds; use apply_to: update"
            )


def isolating(options: Sequence[StrategyOptions]) -> str:
    """The name of the first strategy that isolates steps; "" if there is none."""
    return next((item.name for item in options if strategies[item.name].isolates), "")  # type: ignore[attr-defined]


def parsed_or_none(items: Any) -> tuple[StrategyOptions, ...]:
    """The strategies of a configuration; empty if they are invalid, which is reported elsewhere."""
    try:
        return parse_strategies(items or ())
    except ValueError:
        return ()


def known_name(registry: Any, name: str) -> str:
    """Returns `name` if it is registered; otherwise ValueError suggesting the closest name."""
    if name not in registry:
        raise ValueError(
            f"unknown {registry.kind} {name!r}{nearest(name, list(registry))}; known: {', '.join(registry)}"
        )
    return name
