"""Checkpoints inside a step, so that training continues after a crash exactly as if it had not been interrupted.

Every random draw is a function of seed, purpose and position, so no generator state is stored: only weights, optimizer
moments, strategies' progress, the best weights so far and a few numbers, as safetensors and JSON. Nothing is unpickled.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ner_cl.errors import TrainingError, first_line
from ner_cl.files import publish_folder, write_json
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import Strategy

__all__ = ["Checkpoint", "Progress"]


@dataclass
class Progress:
    """Training progress of a step.

    Attributes:
        step: number of the step.
        stage: stage of the step, from 0.
        fingerprint: hash of configuration and data; a checkpoint of another run is ignored.
        epoch: the epoch being trained, from 1.
        update: updates made in this epoch.
        losses: sums of the loss terms over these updates.
        skipped: updates of this epoch that were skipped because the gradient was not finite.
        best_score: best dev score so far.
        best_epoch: epoch of the best score; 0 if there is none yet.
        bad_epochs: epochs since then.
        train_seconds: time spent in updates, including earlier stages.
        earlier_epochs: epochs trained in earlier stages.
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
        """Number of complete epochs trained in all stages of the step."""
        return self.earlier_epochs + self.epoch - 1

    @property
    def best_epoch_of_all(self) -> int:
        """The best epoch of this stage, counted from the start of the step; 0 if there is none yet."""
        return self.earlier_epochs + self.best_epoch if self.best_epoch else 0


@final
class Checkpoint:
    """A folder with the latest state of the step being trained, replaced atomically.

    Args:
        folder: path of the checkpoint; None disables it.
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
        """Writes everything needed to resume.

        Raises:
            TrainingError: if it cannot be written, for instance because the disk is full.
        """
        if self.folder is None:
            return

        def write(draft: Path) -> None:
            safetensors.torch.save_file(_plain(model.state_dict()), draft / "student.safetensors")
            safetensors.torch.save_file(_plain(_moments(optimizer)), draft / "optimizer.safetensors")
            for strategy in strategies:
                if changing := strategy.progress():
                    safetensors.torch.save_file(
                        _plain({key: tensor.clone() for key, tensor in changing.items()}),
                        draft / f"{strategy.options.name}.progress.safetensors",
                    )
            if best:
                safetensors.torch.save_file(_plain(best), draft / "best.safetensors")
            write_json(draft / "progress.json", asdict(progress))

        try:
            publish_folder(self.folder, write)
        except (OSError, safetensors.SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise TrainingError(
                f"{self.folder}: the checkpoint cannot be written ({reason}); make room for it, and the same command "
                "with --resume goes on"
            ) from error

    def stage_of(self, step: int, fingerprint: str) -> int:
        """The stage of the checkpoint for this step of this run; 0 if there is none."""
        saved = self._progress()
        return saved.stage if saved and (saved.step, saved.fingerprint) == (step, fingerprint) else 0

    def load(
        self, progress: Progress, model: NerModel, optimizer: torch.optim.Optimizer, strategies: Sequence[Strategy]
    ) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restores model, optimizer and strategies; None if there is no checkpoint for this stage of this run.

        Args:
            progress: progress of a fresh start, whose step, stage and fingerprint must match the checkpoint.
            model: the student, with its new block.
            optimizer: a fresh optimizer over its parameters.
            strategies: the strategies, whose progress inside the step is restored.

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
    """The optimizer's state tensors, named `index/name`; empty if it has none."""
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
