"""Variants of a stream with its steps in other orders."""

import math
from typing import TypeAlias

from ner_cl.config import Config, StreamOptions, with_values
from ner_cl.data.corpus import load_corpus
from ner_cl.data.draws import generator
from ner_cl.data.stream import Corpus, order_types
from ner_cl.errors import ConfigError

__all__ = ["Order", "steps_of", "stream_steps", "with_orders"]

Order: TypeAlias = tuple[tuple[str, ...], ...]

# How steps are made, which has no effect where they are listed.
_NO_ORDER = {f"stream.{key}": StreamOptions.model_fields[key].default for key in ("order", "increment", "first")}


def steps_of(options: StreamOptions, corpus: Corpus) -> Order:
    """The types of each step, as listed in the configuration or else derived from the corpus."""
    return options.steps or order_types(
        corpus, order=options.order, increment=options.increment, first=options.first, seed=options.seed
    )


def stream_steps(config: Config) -> Order:
    """The types of each step; reads the corpus only if the configuration does not list them."""
    options = config.stream
    return options.steps or steps_of(options, load_corpus(options.corpus, name=options.name))


def with_orders(config: Config, count: int) -> list[Config]:
    """Copies the configuration for each of `count` different orders of its listed steps.

    The first is the configured order, followed by the published ones in `stream.orders`, then permutations drawn with
    `stream.seed`. A larger `count` only appends orders.

    Raises:
        ConfigError: if there are fewer than `count` orders, or a published one has other steps than there are files.
    """
    own = stream_steps(config)
    orders = list(dict.fromkeys([own, *config.stream.orders]))
    possible = math.factorial(len(own)) + sum(sorted(order) != sorted(own) for order in orders)
    if count > possible:
        raise ConfigError(f"--orders {count}: {len(own)} steps have {possible} orders; ask for fewer")
    orders = orders[:count]
    draw = 0
    while len(orders) < count:
        draw += 1
        permutation = generator(config.stream.seed, f"order of steps {draw}").permutation(len(own))
        drawn = tuple(own[index] for index in permutation)
        if drawn not in orders:
            orders.append(drawn)
    return [with_values(config, {"stream.steps": order, **_files_in(order, config), **_NO_ORDER}) for order in orders]


def _files_in(order: Order, config: Config) -> dict[str, list[str]]:
    """The corpus files of each step in this order, if every step has files of its own."""
    options, found = config.stream, {}
    for key, files in (("train", options.corpus.train), ("dev", options.corpus.dev)):
        if isinstance(files, tuple):
            file_of = dict(zip(options.steps or (), files, strict=True))
            if missing := [types for types in order if types not in file_of]:
                raise ConfigError(f"stream.orders: there is no file in corpus.{key} for the step {list(missing[0])}")
            found[f"stream.corpus.{key}"] = [file_of[types] for types in order]
    return found
