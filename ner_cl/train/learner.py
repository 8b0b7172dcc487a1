"""Trains one step from start to end."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions, TrainingOptions, check_optimizer, parse_strategies
from ner_cl.data.batching import Batch
from ner_cl.data.draws import generator
from ner_cl.data.lines import by_lines
from ner_cl.data.stream import Step, fingerprint
from ner_cl.data.tagset import Tagset
from ner_cl.data.tally import count_mentions
from ner_cl.errors import DataError
from ner_cl.evaluate.counts import Counts, count_spans, micro_f1
from ner_cl.model.encoder import Encoder
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.model.restoring import random_state_restored
from ner_cl.strategies.base import Settled, StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.memory import check_kept
from ner_cl.strategies.pseudo_labels import with_old_types
from ner_cl.train.calibrate import Calibration, calibrate
from ner_cl.train.checkpoint import Checkpoint, Progress
from ner_cl.train.engine import Engine
from ner_cl.train.events import Event, Note
from ner_cl.train.isolation import Fingerprints, emission_fingerprints
from ner_cl.train.kept_state import kept_fingerprint, load_state, state_of
from ner_cl.train.loop import StepTraining, epochs_between_scores, loss_terms, plan_epochs
from ner_cl.train.notes import notes
from ner_cl.train.optimizer import trains
from ner_cl.train.refusals import check_data, check_model, check_parts, check_weights
from ner_cl.types import Sentence, Span

__all__ = ["Learner"]


@final
class Learner:
    """Trains a model step by step; one learner can train a whole stream.

    Args:
        model: the student; it is changed in place.
        strategies: options of the strategies; if empty, the one that gave the model sub-networks, or the default ones.
        training: options of the training loop.
        engine: device, processes, precision.
        seed: seed of all random draws.
        checkpoint: stores the state inside a step.

    Attributes:
        isolation: fingerprints verified as unchanged in the last step; None unless a strategy isolates steps.
        calibration: calibration of the last step's scores; None if it was not measured.
        loop: the last stage of the last step; not set before the first `learn_step`.
        sentences: number of annotated sentences trained on in the last step.
        carried: seconds of training that earlier processes put into the last step.
        settled: what strategies changed at the end of the last step, by name.

    Raises:
        ConfigError: if the strategies cannot be combined with each other or with the model.
    """

    def __init__(
        self,
        model: NerModel,
        strategies: Sequence[StrategyOptions],
        training: TrainingOptions,
        *,
        engine: Engine | None = None,
        seed: int = 13,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.training = training
        self.engine = engine or Engine(training.precision)
        self.model = model.to(self.engine.device)
        if not strategies and model.subnetworks is not None:
            strategies = parse_strategies([model.subnetworks.options.name])
        self.strategies = build_strategies(strategies, model.head.options)
        self.seed = seed
        self.checkpoint = checkpoint or Checkpoint(None)
        self.isolation: Fingerprints | None = None
        self.calibration: Calibration | None = None
        self.loop: StepTraining
        self.sentences, self.carried = 0, 0.0
        self.settled: dict[str, Settled] = {}
        check_model(self.strategies, model)
        check_optimizer([strategy.options for strategy in self.strategies], training.optimizer)
        self._give_back()

    def _give_back(self) -> None:
        """Gives every strategy what the model holds for it from earlier steps."""
        for strategy in self.strategies:
            if kept := self.model.strategy_state.get(strategy.options.name):
                load_state(strategy, kept)
            strategy.load_sentences(self.model.kept_sentences.get(strategy.options.name, ()))

    @property
    def reads_earlier(self) -> Literal["all", "own"] | None:
        """The annotation with which a strategy reads the data of earlier steps, as only an upper bound does."""
        return next((reads for strategy in self.strategies if (reads := strategy.reads_earlier)), None)

    @property
    def reads_unlabeled(self) -> bool:
        """Whether a strategy uses raw text."""
        return any(strategy.reads_unlabeled for strategy in self.strategies)

    def learn_step(
        self,
        step: Step,
        *,
        old_steps: Sequence[Sequence[str]] | None = None,
        earlier: Sequence[Sentence] = (),
        earlier_dev: Sequence[Sentence] = (),
        unlabeled: Sequence[Sentence] = (),
    ) -> Iterator[Event]:
        """Trains one step, yielding events; `model` ends with its best weights.

        Args:
            step: the new types and the sentences annotated for them.
            old_steps: the types of each earlier step, if the model does not know them (an upper bound that starts at
                the last step).
            earlier: all sentences seen so far with all annotation; passed only to strategies that need it.
            earlier_dev: the same for the dev sentences.
            unlabeled: sentences of the step's domain without annotation, for strategies that can use them.

        Raises:
            DataError: if there are no sentences, one is annotated for types of other steps, or a remembered one is
                annotated for unknown types.
            ModelError: if a type is known already, or a strategy adds parameters to the model.
            CheckFailed: if a strategy isolates steps but an old block changed.
        """
        self._give_back()  # as a resumed run does, so that the result is the same
        old = self.model.tagset.steps if old_steps is None else old_steps
        with random_state_restored(self.engine.device):
            yield from self._learn_step(step, old, earlier=earlier, earlier_dev=earlier_dev, unlabeled=unlabeled)

    def _learn_step(
        self,
        step: Step,
        old_steps: Sequence[Sequence[str]],
        *,
        earlier: Sequence[Sentence],
        earlier_dev: Sequence[Sentence],
        unlabeled: Sequence[Sentence],
    ) -> Iterator[Event]:
        Tagset(tuple(tuple(types) for types in old_steps)).grow(step.types)  # rejects a type that is known already
        check_data(step)
        step = replace(step, train=tuple(by_lines(step.train)), dev=tuple(by_lines(step.dev)))
        earlier, earlier_dev, unlabeled = by_lines(earlier), by_lines(earlier_dev), by_lines(unlabeled)
        for strategy in self.strategies:
            check_kept(strategy.kept_sentences(), [name for types in old_steps for name in types], step.types)
        context = self._context(step, old_steps, earlier)
        context.unlabeled, context.dev = tuple(unlabeled), step.dev
        self.model.requires_grad_(True).eval()
        self.model.encoder.shortcut = None  # left over from an aborted step
        if self.model.discriminant is not None:
            self.model.discriminant = self.model.discriminant.for_teachers()
        before = self._old_emissions(step) if any(strategy.isolates for strategy in self.strategies) else None
        for strategy in self.strategies:
            known = set(self.model.state_dict())
            strategy.begin_step(context)
            check_parts(self.model, known, strategy)
        dev = earlier_dev if self.reads_earlier else self._dev(step, context)
        train: Sequence[Sentence] = [sentence for sentence in step.train if sentence.words]  # others have no loss
        for strategy in self.strategies:
            train = strategy.sentences(context, train)
        self.model.discriminant = None  # teachers are copied by now; training knows the network alone
        self._grow(step.types, step.number)
        context.encoded = self.model.encode(train)
        if "own" not in context.encoded.origins:
            raise DataError(f"step {step.number}: no sentence is annotated for {', '.join(step.types)}")
        self.sentences = len(context.encoded.sentences_from("own", "remembered"))
        yield from notes(self.model, self.strategies, context, dev)
        yield from self._train(context, dev, self._fingerprint(step, earlier, earlier_dev, unlabeled))
        yield from self._finish(context)
        self.calibration = self._calibrate(step)
        self._agree()
        self.isolation = before
        if before is not None:
            before.check(self._old_emissions(step))

    def _calibrate(self, step: Step) -> Calibration | None:
        if not self.training.calibrate:
            return None
        batch_tokens, precision = self.training.eval_batch_tokens, self.engine.precision
        return calibrate(self.model, step.dev, batch_tokens=batch_tokens, precision=precision)

    def _old_emissions(self, step: Step) -> Fingerprints:
        """Fingerprints of the old blocks' emissions on the step's dev sentences, else on its training sentences."""
        return emission_fingerprints(
            self.model,
            step.dev or step.train,
            range(1, step.number),
            batch_tokens=self.training.eval_batch_tokens,
            precision=self.engine.precision,
        )

    def _train(self, context: StepContext, dev: Sequence[Sentence], fingerprint: str) -> Iterator[Event]:
        """Trains all stages of the step, starting from the checkpoint's stage if there is one."""
        later_epochs = [epochs for strategy in self.strategies for epochs in strategy.stages(context)]
        seconds, earlier_epochs, self.carried = 0.0, 0, 0.0
        for stage in range(self.checkpoint.stage_of(context.number, fingerprint), 1 + len(later_epochs)):
            context.stage = stage
            for strategy in self.strategies:
                strategy.begin_stage(context)
            epochs, context.epoch_factor = plan_epochs(self.training, context, self.engine.processes)
            context.epochs = context.epoch_factor * later_epochs[stage - 1] if stage else epochs
            encoder, isolated = self.model.encoder, context.trained_steps is not None
            if self.training.train_embeddings and not isolated and trains(encoder) and not trains(encoder.embeddings):
                text = "training.train_embeddings has no effect: a strategy of the list holds the embeddings still"
                yield Note(step=context.number, text=text)
            self.loop = StepTraining(
                context=context,
                strategies=self.strategies,
                options=self.training,
                epochs=context.epochs,
                patience=context.epoch_factor * self.training.early_stopping.patience,
                mentions=sum(count_mentions(dev).values()),
                every=epochs_between_scores(self.training, context, dev),
                engine=self.engine,
                dev_score=lambda: self._score(dev, context),
                seed=int(context.generator(f"dropout/{stage}" if stage else "dropout").integers(2**62)),
                checkpoint=self.checkpoint,
                fingerprint=fingerprint,
                seconds=seconds,
                earlier_epochs=earlier_epochs,
            )
            yield from self.loop.run()
            self.carried += self.loop.carried
            seconds, earlier_epochs = self.progress.train_seconds, self.progress.epochs_done

    def _finish(self, context: StepContext) -> Iterator[Note]:
        """Ends a step: strategies settle weights, then measure; then the model stores what they keep."""
        self.model.encoder.shortcut = None  # measurements need the whole encoder to run
        self.settled = {}
        for strategy in sorted(self.strategies, key=lambda strategy: strategy.settle_order):
            if settled := strategy.settle(context):
                self.settled[strategy.options.name] = settled
                yield Note(step=context.number, text=f"{strategy.options.name}: {settled.text}")
        check_weights(self.model, context.number, self.strategies)
        for strategy in self.strategies:
            strategy.end_step(context)
        for strategy in self.strategies:
            strategy.release()
        self.model.strategy_state = {s.options.name: state for s in self.strategies if (state := state_of(s))}
        self.model.kept_sentences = {
            s.options.name: tuple(kept) for s in self.strategies if (kept := s.kept_sentences())
        }

    @torch.no_grad()
    def _agree(self) -> None:
        """Copies the main process's state to all processes, whose own may differ in the last bits."""
        model, engine = self.model, self.engine
        engine.as_in_main(model.state_dict().values())
        measured = (model.head.temperatures, model.strategy_state, model.kept_sentences)
        model.head.temperatures, model.strategy_state, model.kept_sentences = engine.from_main(measured)
        if not engine.is_main:
            self._give_back()

    @property
    def progress(self) -> Progress:
        """Progress of the last step."""
        return self.loop.progress

    def predict(self, sentences: Sequence[Sentence], *, types: Sequence[str] | None = None) -> list[list[Span]]:
        """Predicts spans with the current model, of `types` or of all types."""
        return predict_sentences(
            self.model,
            sentences,
            types=types,
            batch_tokens=self.training.eval_batch_tokens,
            precision=self.engine.precision,
        )

    def count(self, sentences: Sequence[Sentence], types: Sequence[str], *, alone: bool = False) -> dict[str, Counts]:
        """Counts correct, wrong and missed spans per type, with the sentences split over processes.

        Args:
            sentences: sentences annotated for any types.
            types: the types to count.
            alone: predict these types only, so that no other type competes for a word.
        """
        mine = self.engine.mine(sentences)
        return self.engine.sum_counts(count_spans(mine, self.predict(mine, types=types if alone else None), types))

    def _context(self, step: Step, old_steps: Sequence[Sequence[str]], earlier: Sequence[Sentence]) -> StepContext:
        def reset_model() -> None:
            fresh = Encoder.from_options(self.model.encoder.options)
            self.model.encoder.load_state_dict(fresh.state_dict())
            self.model.head.reset()
            for number, types in enumerate(old_steps, start=1):
                self._grow(types, number)

        def training_loss(batch: Batch) -> Float[Tensor, ""]:
            with torch.autocast(self.engine.device.type, enabled=False):
                emissions = self.model(batch, steps=context.trained_steps)
                terms = loss_terms(self.strategies, context, batch, emissions)
            return torch.stack(list(terms.values())).sum()

        context = StepContext(
            number=step.number,
            types=step.types,
            old_types=tuple(type_ for types in old_steps for type_ in types),
            model=self.model,
            batch_tokens=self.training.batch_tokens,
            eval_batch_tokens=self.training.eval_batch_tokens,
            precision=self.engine.precision,
            earlier=tuple(earlier) if self.reads_earlier else (),
            reset_model=reset_model,
            predict=self.predict,
            training_loss=training_loss,
            generator=lambda purpose: generator(self.seed, f"step {step.number}/{purpose}"),
        )
        return context

    def _grow(self, types: Sequence[str], number: int) -> None:
        draw = generator(self.seed, f"step {number}/new rows")
        self.model.grow(types, generator=torch.Generator().manual_seed(int(draw.integers(2**62))))

    def _dev(self, step: Step, context: StepContext) -> Sequence[Sentence]:
        """Dev sentences for model selection: gold for new types; if asked for, current predictions for old types."""
        alone = context.trained_steps is not None  # predictions of earlier steps do not change
        if self.training.early_stopping.metric == "new" or not context.old_types or alone:
            return step.dev
        return [
            with_old_types(sentence, spans, context.old_types)
            for sentence, spans in zip(step.dev, self.predict(step.dev), strict=True)
        ]

    def _score(self, dev: Sequence[Sentence], context: StepContext) -> float | None:
        """Micro F1 on dev sentences; with sub-networks, of the new types only, since old blocks do not change."""
        alone = context.trained_steps is not None
        types = context.types if alone else self.model.types
        return micro_f1(self.count(dev, types, alone=alone)) if dev else None

    def _fingerprint(self, step: Step, *others: Sequence[Sentence]) -> str:
        """Hash of what determines the step's result: strategies, training options, seed, process count and data."""
        settings = [strategy.options.model_dump_json() for strategy in self.strategies]
        settings.append(self.training.model_dump_json(exclude={"checkpoint_seconds", "eval_batch_tokens"}))
        settings += [str(self.seed), str(self.engine.processes), fingerprint(step.train), fingerprint(step.dev)]
        settings += [fingerprint(sentences) for sentences in others if sentences]
        settings += [kept_fingerprint(strategy) for strategy in self.strategies]
        return hashlib.sha256("\n".join(settings).encode()).hexdigest()
