"""Describe what a configuration would do, for `ner-cl train --dry-run`."""

from dataclasses import asdict, dataclass
from typing import Any

from ner_cl.cli.console import table
from ner_cl.config import Config
from ner_cl.data.stream import Step
from ner_cl.data.tally import count_mentions
from ner_cl.strategies.build import build_strategies
from ner_cl.train.run import open_stream

__all__ = ["RunDescription", "StepDescription", "describe_run"]


@dataclass(frozen=True)
class StepDescription:
    """One step: its types, the sizes of its training and dev data, and training mentions of each type."""

    step: int
    types: tuple[str, ...]
    sentences: int
    words: int
    mentions: dict[str, int]
    dev_sentences: int


@dataclass(frozen=True)
class RunDescription:
    """A planned run."""

    stream: str
    protocol: str
    encoder: str
    head: str
    strategies: tuple[str, ...]
    output: str
    test_sentences: int
    test_mentions: dict[str, int]
    steps: tuple[StepDescription, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON-compatible values."""
        return asdict(self)

    @property
    def text(self) -> str:
        """The description as plain text."""
        rows = [
            [
                step.step,
                ", ".join(step.types),
                step.sentences,
                step.words,
                ", ".join(f"{count}" for count in step.mentions.values()),
                step.dev_sentences,
                ", ".join(f"{self.test_mentions[type_]}" for type_ in step.types),
            ]
            for step in self.steps
        ]
        header = ["step", "types", "sentences", "words", "mentions", "dev sentences", "test mentions"]
        return "\n".join(
            [
                f"stream {self.stream}, protocol {self.protocol}, {len(self.steps)} steps, "
                f"{self.test_sentences} test sentences",
                f"encoder {self.encoder}, head {self.head}, strategies {', '.join(self.strategies)}",
                f"output {self.output}",
                "",
                table(header, rows, text_columns=2),
            ]
        )


def describe_run(config: Config) -> RunDescription:
    """Read the corpus, draw the slices and check the strategies, without writing anything.

    Raises:
        ConfigError: if strategies are incompatible or a type never occurs.
        DataError: if the corpus cannot be read.
    """
    strategies = build_strategies(config.strategies)
    stream = open_stream(config)
    mentions = count_mentions(stream.test)
    return RunDescription(
        stream=stream.corpus_name,
        protocol=stream.protocol,
        encoder=config.encoder.name,
        head=config.head.name,
        strategies=tuple(strategy.options.name for strategy in strategies),
        output=config.output,
        test_sentences=len(stream.test),
        test_mentions={type_: mentions[type_] for type_ in stream.types},
        steps=tuple(map(_describe_step, stream.steps)),
    )


def _describe_step(step: Step) -> StepDescription:
    mentions = count_mentions(step.train)
    return StepDescription(
        step=step.number,
        types=step.types,
        sentences=len(step.train),
        words=sum(len(sentence.words) for sentence in step.train),
        mentions={type_: mentions[type_] for type_ in step.types},
        dev_sentences=len(step.dev),
    )
