"""Device, processes and precision of training, through `accelerate`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from ner_cl.errors import MissingExtra
from ner_cl.evaluate.counts import Counts
from ner_cl.model.precision import Precision, has_gpu, resolve_precision

__all__ = ["Engine"]

T = TypeVar("T")


@final
class Engine:
    """A thin layer over `accelerate`: one process on a CPU or GPU, or several under `accelerate launch` or `torchrun`.

    Args:
        precision: number format of forward passes.
        tracker: an experiment tracker supported by `accelerate`; None for none.
        logs: log folder of trackers that write files.

    Raises:
        MissingExtra: if the tracker is not installed.
    """

    def __init__(self, precision: Precision = "auto", *, tracker: str | None = None, logs: Path | None = None) -> None:
        if tracker is not None and tracker not in map(str, get_available_trackers()):
            raise MissingExtra(f"tracker: {tracker} is not installed; run: pip install {tracker}")
        # `cpu` is explicit, because `accelerate` would otherwise let processes without a GPU each train alone.
        # Only a `PartialState`, so that an `Accelerator` in the same program can still choose its own precision.
        self._state = PartialState(cpu=not has_gpu())
        self._tracker, self._logs = tracker, logs
        self._tracking: GeneralTracker | None = None
        self.device: torch.device = self._state.device
        self.precision: Precision = resolve_precision(precision, self.device)

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return int(self._state.process_index)

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and output."""
        return bool(self._state.is_main_process)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over processes; one that is None in all processes stays None.

        Call it once per update, after all forward and backward passes. Unlike a wrapped model, it does not need to know
        which parameters a pass used.

        Args:
            parameters: the same parameters in the same order in all processes.
        """
        if self.processes == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        has_one = torch.tensor([parameter.grad is not None for parameter in trained], device=self.device)
        somewhere = reduce(has_one.float(), reduction="sum").tolist()
        used = [parameter for parameter, count in zip(trained, somewhere, strict=True) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        parts = mean.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(old) for part, old in zip(parts, gradients, strict=True)])

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's share of a sequence that all processes hold."""
        return items[self.rank :: self.processes]

    def gather(self, mine: Sequence[Any]) -> list[Any]:
        """Merges the items of all processes, in the order of the sequence split by `mine`; same result everywhere."""
        if self.processes == 1:
            return list(mine)
        shares = gather_object([list(mine)])
        whole: list[Any] = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            whole[rank :: self.processes] = share
        return whole

    def sum_counts(self, counts: Mapping[str, Counts]) -> dict[str, Counts]:
        """Sums counts over processes."""
        if self.processes == 1:
            return dict(counts)
        table = torch.tensor([[c.tp, c.fp, c.fn] for c in counts.values()], device=self.device).reshape(-1, 3)
        summed = reduce(table, reduction="sum").tolist()
        return {type_: Counts(*row) for type_, row in zip(counts, summed, strict=True)}

    def average(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Averages each tensor over processes, all of which must pass the same names in the same order."""
        if self.processes == 1:
            return tensors
        return {name: reduce(tensor, reduction="mean") for name, tensor in tensors.items()}

    def as_in_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors in place with the main process's values; all processes must pass the same ones."""
        if self.processes > 1:
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.to(self.device)))

    def from_main(self, value: T) -> T:
        """Returns the value passed by the main process, in every process."""
        if self.processes == 1:
            return value
        told: list[T] = broadcast_object_list([value])
        return told[0]

    def first(self, message: str) -> str:
        """Returns the first non-empty message of any process; "" if there is none."""
        messages = gather_object([message]) if self.processes > 1 else [message]
        return next((found for found in messages if found), "")

    def start_tracking(self, run: str, settings: Mapping[str, Any]) -> None:
        """Starts a run in the tracker's project `ner_cl`, if there is a tracker."""
        if self._tracker is None:
            return
        names = {"wandb": "name", "trackio": "name", "mlflow": "run_name"}
        made = LOGGER_TYPE_TO_CLASS[self._tracker]
        places = [str(self._logs)] if made.requires_logging_directory else []
        self._tracking = made("ner_cl", *places, **({names[self._tracker]: run} if self._tracker in names else {}))
        self._tracking.start()
        self._tracking.store_init_configuration(dict(settings))

    def track(self, values: Mapping[str, float], *, at: int) -> None:
        """Logs values to the tracker, if there is one."""
        if self._tracking is not None:
            self._tracking.log(dict(values), step=at)

    def stop_tracking(self) -> None:
        """Ends the tracker's run, if there is one."""
        if self._tracking is not None:
            self._tracking.finish()
        self._tracking = None

    def wait(self) -> None:
        """Blocks until every process has called it."""
        self._state.wait_for_everyone()
