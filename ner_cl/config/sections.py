"""The sections of a configuration: strict, frozen, every option with its default."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from ner_cl.config.base import Options
from ner_cl.config.composition import (
    HeadOptions,
    StrategyOptions,
    check_composition,
    check_head,
    check_optimizer,
    isolating,
    or_default,
    parse_strategies,
    parsed_or_none,
)
from ner_cl.config.sweep import SweepOptions
from ner_cl.errors import ConfigError

__all__ = [
    "Config",
    "CorpusOptions",
    "EarlyStoppingOptions",
    "EncoderOptions",
    "GateOptions",
    "OptimizerOptions",
    "StreamOptions",
    "TrainingOptions",
]


class EncoderOptions(Options):
    """Which encoder to use, and how long its windows are.

    Attributes:
        name: alias (`minilm-l6`), Hugging Face id, or folder.
        max_pieces: maximum length of a window in word pieces, special ones included; longer sentences are read in
            several windows.
        window_overlap: number of word pieces that neighbouring windows share; by default 64, but at most a quarter of
            `max_pieces`.
    """

    name: str = "minilm-l6"
    max_pieces: int = Field(256, ge=8)
    window_overlap: int = Field(64, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _room_for_words(cls, values: Any) -> Any:
        """Reduces the default `window_overlap` for short rows; takes a name alone, too."""
        if isinstance(values, str):
            return {"name": values}
        if isinstance(values, Mapping) and "window_overlap" not in values and isinstance(values.get("max_pieces"), int):
            return {**values, "window_overlap": _overlap(values["max_pieces"])}
        return values

    @property
    def overlaps_by_default(self) -> bool:
        """Whether `window_overlap` is what `max_pieces` makes it by itself."""
        return self.window_overlap == _overlap(self.max_pieces)


def _overlap(max_pieces: int) -> int:
    return max(0, min(64, max_pieces // 4))


class CorpusOptions(Options):
    """The corpus files and how to read them.

    Relative paths are looked up under `$NER_CL_DATA`, then next to the configuration, then in the working directory.

    Where every step has data of its own, `train`, and if you like `dev`, list a file for each step in `stream.steps`.

    `unlabeled` is raw in-domain text that every step may read: a text file (`.txt`) with one text per line, or a file
    like the others, whose annotation is ignored.
    """

    format: str = "auto"
    train: str | Annotated[tuple[str, ...], Field(min_length=1)]
    dev: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    test: str
    unlabeled: str | None = None
    scheme: Literal["auto", "iob1", "iob2", "bioes", "io"] = "auto"
    on_overlap: Literal["error", "longest", "keep"] = "error"
    alignment: Literal["error", "expand"] = "error"


class StreamOptions(Options):
    """Which types arrive in which step.

    Attributes:
        file: a pinned stream: a YAML file with the keys of this section. Other keys given here override it.
        name: name of the stream in reports.
        corpus: the corpus files.
        steps: types of each step. Leave it out to have steps made from `order` and `increment`.
        order: order of types if `steps` is not given: `alphabetical`, `frequency` (most training mentions first) or
            `random`.
        increment: number of types per step if `steps` is not given.
        first: number of types in step 1 if `steps` is not given; by default `increment`.
        protocol: how sentences are given to steps: `disjoint` (random slices), `greedy` (CFNER's slices) or `overlap`
            (every sentence that mentions a type of the step); `files` if `corpus.train` lists a file for each step.
        dev: how dev sentences are given to steps: `slice` (divided like the training data), `whole` (all of them to
            every step), or `auto` (as the protocol's authors did: `whole` for `greedy`, else `slice`). Under `files`,
            one dev file is for every step.
        seed: seed of the slices, and of the type order if it is `random`.
        orders: other published orders of `steps`. To use one, give it as `steps`; `train --orders` runs several.
    """

    file: str | None = None
    name: str = "stream"
    corpus: CorpusOptions
    steps: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] | None = Field(None, min_length=1)
    order: Literal["alphabetical", "frequency", "random"] = "alphabetical"
    increment: int = Field(1, ge=1)
    first: int | None = Field(None, ge=1)
    protocol: Literal["disjoint", "greedy", "overlap", "files"] = "disjoint"
    dev: Literal["slice", "whole", "auto"] = "auto"
    seed: int = 13
    orders: tuple[tuple[tuple[str, ...], ...], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _files_need_no_protocol(cls, values: Any) -> Any:
        """Uses the protocol `files` if there is a training file for each step."""
        if isinstance(values, Mapping) and "protocol" not in values and isinstance(values.get("corpus"), Mapping):
            train = values["corpus"].get("train")
            return {**values, "protocol": "files"} if isinstance(train, list | tuple) else values
        return values

    @model_validator(mode="after")
    def _a_file_for_each_step(self) -> "StreamOptions":
        train, dev, given = self.corpus.train, self.corpus.dev, self.protocol == "files"
        if given == isinstance(train, str):
            raise ValueError(
                "protocol: files needs corpus.train to be a list, with a file for each step"
                if given
                else "corpus.train has files for steps, which no protocol divides; set protocol: files, or leave it out"
            )
        if isinstance(dev, tuple) and not given:
            raise ValueError("corpus.dev can only have a file for each step where corpus.train has; give one file")
        if given and (self.dev == "slice" or (self.dev == "whole" and isinstance(dev, tuple))):
            raise ValueError(f"dev: {self.dev} has no effect where the files of each step are listed; leave it out")
        for key, files in (("train", train), ("dev", dev)):
            if isinstance(files, tuple) and len(files) != len(self.steps or ()):
                raise ValueError(
                    f"corpus.{key} has {len(files)} files for {len(self.steps)} steps; give a file for each"
                    if self.steps
                    else f"steps: list the types of each step, as corpus.{key} has a file for each"
                )
        return self

    @model_validator(mode="after")
    def _steps_or_how_to_make_them(self) -> "StreamOptions":
        if self.steps is None:
            return self
        for key in ("order", "increment", "first"):
            if key in self.chosen:
                raise ValueError(f"{key} has no effect where steps are listed; leave it out, or set steps: null")
        return self


class OptimizerOptions(Options):
    """The optimizer; every step starts with a new one.

    Attributes:
        name: `adamw` or `sgd`.
        lr: peak learning rate of the encoder.
        head_lr: peak learning rate of the head. `auto` is 1e-3 or, where nothing but the head is trained, 1e-2: a
            frozen encoder cannot adapt to the head, so the head must move further.
        weight_decay: decoupled for `adamw`; biases and normalisation weights are exempt.
        momentum: momentum of `sgd`.
        warmup: share of the updates during which the learning rate rises; it then falls linearly to 0.
        clip: maximum gradient norm; 0 turns clipping off.
        apply_to: whether soft masks and projections of strategies act on the `update` or, as in the papers, on the
            `gradient`. The latter needs `sgd` without weight decay and momentum: Adam would divide the mask out again.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1.5e-4, gt=0)
    head_lr: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float = Field(1.0, ge=0)
    apply_to: Literal["update", "gradient"] = "update"

    @model_validator(mode="after")
    def _gradient_only_under_sgd(self) -> "OptimizerOptions":
        if self.apply_to == "gradient" and self.name != "sgd":
            raise ValueError(
                "apply_to: gradient does nothing under adamw, which divides the mask out again; "
                "use apply_to: update, or name: sgd"
            )
        if self.apply_to == "gradient" and (self.weight_decay or self.momentum):
            raise ValueError(
                "apply_to: gradient needs weight_decay: 0 and momentum: 0, which move weights that a mask on the "
                "gradient holds; set both, or use apply_to: update"
            )
        return self


class EarlyStoppingOptions(Options):
    """When to stop training in a step, and which weights to keep.

    Attributes:
        patience: stop after this many epochs without a better score; 0 trains all epochs. The best weights are restored
            either way.
        tolerance: a score is as good as the best one down to so many of its standard errors below it. The last epoch
            with such a score is kept, as its learning rate was lowest. 0 keeps the epoch with the highest
            score, even if the difference is within chance.
        metric: micro F1 on the step's dev sentences, over the `new` types or over all types `seen` so far. For old
            types, the predictions of the model before the step serve as gold, so no old annotation is needed.
        every: number of epochs from one evaluation on the dev sentences to the next; the last epoch is always
            evaluated. `auto` is 1 or, if dev sentences far outnumber training sentences, large enough for evaluation to
            cost no more than training.
    """

    patience: int = Field(3, ge=0)
    tolerance: float = Field(1.0, ge=0, le=10)
    metric: Literal["new", "seen"] = "new"
    every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class TrainingOptions(Options):
    """How one step is trained.

    Attributes:
        epochs: maximum number of passes over the step's sentences. `auto` is 10 or, if there are few sentences, the
            smallest multiple of 10 that makes 100 updates (500 of a head that trains alone), as a handful of updates
            teaches nothing; `patience` is raised by the same factor.
        batch_tokens: word pieces per batch, padding included; strategies that mix in a share of rows may exceed it.
        eval_batch_tokens: the same for prediction.
        accumulate: number of batches per update.
        precision: number format of the encoder: `fp32`, `bf16`, or `auto`, which is bf16 if the device computes in it,
            else fp32.
        train_embeddings: train the word-piece embeddings too. They are half the parameters of a small encoder, and a
            step sees few of their rows; training them takes time and has no measurable benefit.
        calibrate: at the end of a step, find the temperature at which scores tell how often they are right on the dev
            sentences. Tags do not depend on it.
        checkpoint_seconds: minimum number of seconds between two checkpoints within a step; 0 makes one after every
            update.
    """

    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    batch_tokens: int = Field(512, ge=16)
    eval_batch_tokens: int = Field(4096, ge=16)
    accumulate: int = Field(1, ge=1)
    optimizer: OptimizerOptions = OptimizerOptions()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_embeddings: bool = False
    early_stopping: EarlyStoppingOptions = EarlyStoppingOptions()
    calibrate: bool = True
    checkpoint_seconds: float = Field(60.0, ge=0)


class GateOptions(Options):
    """The forgetting gate: `max_drop` is the largest drop in F1 (0 to 1) allowed for any old type in one step."""

    max_drop: float | None = Field(None, ge=0, le=1)


class Config(Options):
    """A whole run: a stream of steps on one encoder and head, with a list of strategies.

    An empty list of strategies stands for the default one. `tracker` shows losses and scores in an experiment tracker
    during the run; it changes nothing else.
    """

    seed: int = Field(13, ge=0)
    encoder: EncoderOptions = EncoderOptions()
    head: HeadOptions = HeadOptions()
    stream: StreamOptions
    strategies: tuple[SerializeAsAny[StrategyOptions], ...] = Field((), validate_default=True)
    training: TrainingOptions = TrainingOptions()
    gate: GateOptions = GateOptions()
    output: str = "runs/run"
    tracker: Literal["mlflow", "tensorboard", "trackio", "wandb"] | None = None
    sweep: SweepOptions = SweepOptions()

    @model_validator(mode="before")
    @classmethod
    def _head_for_strategies(cls, values: Any) -> Any:
        """Uses the head `addner` by default if a strategy isolates steps."""
        if isinstance(values, Mapping) and "head" not in values and isolating(parsed_or_none(values.get("strategies"))):
            return {**values, "head": {"name": "addner"}}
        return values

    @model_validator(mode="after")
    def _strategies_fit(self) -> "Config":
        try:
            check_head(self.strategies, self.head)
            check_optimizer(self.strategies, self.training.optimizer)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @field_validator("strategies", mode="before")
    @classmethod
    def _parse_strategies(cls, value: Any, info: Any) -> Any:
        return or_default(parse_strategies(value), info.data.get("head", HeadOptions()))  # an invalid head is told

    @field_validator("strategies")
    @classmethod
    def _composable(cls, value: tuple[StrategyOptions, ...]) -> tuple[StrategyOptions, ...]:
        try:
            check_composition(value)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("strategies: ")) from error
        return value
