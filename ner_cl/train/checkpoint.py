"""Where a step stands, so that it can go on after a crash exactly as if nothing had happened.

Every random draw is a function of seed, purpose and position, so no generator state has to be kept: weights, optimizer
moments, the best weights so far and a handful of numbers are all. safetensors and JSON; nothing is ever unpickled.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor

from ner_cl.errors import TrainingError
from ner_cl.files import publish_folder, write_json
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import Strategy

__all__ = ["Checkpoint", "Progress"]


@dataclass
class Progress:
    """How far a step has come.

    Attributes:
        step: its number.
        stage: of the step, from 0.
        fingerprint: of configuration and data; a checkpoint of another run is not taken.
        epoch: the epoch being trained, from 1.
        update: updates made in it.
        losses: sums of the loss terms over these updates.
        skipped: updates of this epoch that were skipped for a gradient that was not finite.
        best_score: best dev score so far.
        best_epoch: its epoch; 0 if there is none yet.
        bad_epochs: epochs since then.
        train_seconds: time spent in updates, those of earlier stages too.
        earlier_epochs: that earlier stages were trained for.
        finished: whether training is over and only the best weights matter.
    """

    step: int
    fingerprint: str
    stage: int = 0
    epoch: int = 1
    update: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    bad_epochs: int = 0
    train_seconds: float = 0.0
    earlier_epochs: int = 0
    finished: bool = False

    @property
    def epochs_done(self) -> int:
        """Whole epochs that the step was trained for, in all stages."""
        return self.earlier_epochs + self.epoch - 1

    @property
    def best_epoch_of_all(self) -> int:
        """The best epoch of this stage, counted from the first of the step; 0 if there is none yet."""
        return self.earlier_epochs + self.best_epoch if self.best_epoch else 0


@final
class Checkpoint:
    """A folder with the newest state of the step being trained; replaced whole, never half.

    Args:
        folder: where it is; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(
        self,
        progress: Progress,
        model: NerModel,
        optimizer: torch.optim.Optimizer,
        strategies: Sequence[Strategy],
        best: dict[str, Tensor],
    ) -> None:
        """Writes everything needed to go on."""
        if self.folder is None:
            return

        def write(draft: Path) -> None:
            safetensors.torch.save_file(_plain(model.state_dict()), draft / "student.safetensors")
            safetensors.torch.save_file(_plain(_moments(optimizer)), draft / "optimizer.safetensors")
            for strategy in strategies:
                if changing := strategy.progress():
                    safetensors.torch.save_file(
                        _plain(changing), draft / f"{strategy.options.name}.progress.safetensors"
                    )
            if best:
                safetensors.torch.save_file(_plain(best), draft / "best.safetensors")
            write_json(draft / "progress.json", asdict(progress))

        publish_folder(self.folder, write)

    def stage_of(self, step: int, fingerprint: str) -> int:
        """The stage that a checkpoint of this step of this run stands in; 0 where there is none."""
        saved = self._progress()
        return saved.stage if saved and (saved.step, saved.fingerprint) == (step, fingerprint) else 0

    def load(
        self, progress: Progress, model: NerModel, optimizer: torch.optim.Optimizer, strategies: Sequence[Strategy]
    ) -> tuple[Progress, dict[str, Tensor]] | None:
        """Puts model and optimizer where the checkpoint left them; None if there is none for this step of this run.

        Args:
            progress: of a fresh start; step, stage and fingerprint must agree with the checkpoint's.
            model: the student, with its new block.
            optimizer: fresh, over its parameters.
            strategies: given back what they keep inside a step.

        Returns:
            The progress made and the best weights so far.

        Raises:
            TrainingError: if the checkpoint is damaged.
        """
        saved = self._progress()
        if self.folder is None or saved is None:
            return None
        if (saved.step, saved.stage, saved.fingerprint) != (progress.step, progress.stage, progress.fingerprint):
            return None
        try:
            model.load_state_dict(safetensors.torch.load_file(self.folder / "student.safetensors"))
            _restore_moments(optimizer, safetensors.torch.load_file(self.folder / "optimizer.safetensors"))
            for strategy in strategies:
                path = self.folder / f"{strategy.options.name}.progress.safetensors"
                if path.is_file():
                    strategy.load_progress(safetensors.torch.load_file(path))
            path = self.folder / "best.safetensors"
            return saved, safetensors.torch.load_file(path) if path.is_file() else {}
        except Exception as error:
            raise self._damaged(error) from error

    def _progress(self) -> Progress | None:
        if self.folder is None or not (self.folder / "progress.json").is_file():
            return None
        try:
            return Progress(**json.loads((self.folder / "progress.json").read_text(encoding="utf-8")))
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> TrainingError:
        return TrainingError(f"{self.folder}: damaged checkpoint ({error}); delete it to start the step anew")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors under `index/name`; an optimizer without moments gives none."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
