"""Where training runs: device, processes and precision, through `accelerate`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from ner_cl.errors import MissingExtra
from ner_cl.evaluate.counts import Counts
from ner_cl.model.precision import Precision, resolve_precision

__all__ = ["Engine"]

T = TypeVar("T")


@final
class Engine:
    """A thin layer over `accelerate`: one process on a CPU or GPU, or several under `accelerate launch` or `torchrun`.

    Args:
        precision: number format of forward passes.
        tracker: an experiment tracker that `accelerate` knows; None for none.
        logs: where a tracker that writes files writes them.

    Raises:
        MissingExtra: if the tracker is not installed.
    """

    def __init__(self, precision: Precision = "auto", *, tracker: str | None = None, logs: Path | None = None) -> None:
        if tracker is not None and tracker not in map(str, get_available_trackers()):
            raise MissingExtra(f"tracker: {tracker} is not installed; run: pip install {tracker}")
        # Said outright, because `accelerate` would take processes without a GPU for strangers that each train alone.
        # No more than this state, so that whoever uses an `Accelerator` beside us can give it any precision.
        self._state = PartialState(cpu=not torch.accelerator.is_available())
        self._tracker, self._logs = tracker, logs
        self._tracking: GeneralTracker | None = None
        self.device: torch.device = self._state.device
        self.precision: Precision = resolve_precision(precision, self.device)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._state.process_index)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return bool(self._state.is_main_process)

    @contextmanager
    def random_numbers_apart(self) -> Iterator[None]:
        """Leaves the caller's random numbers as they were, whatever is drawn or seeded meanwhile."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over processes; a parameter without one in any process keeps none.

        Once an update, however many forward and backward passes made the gradients: unlike a wrapped model, this knows
        nothing of which parameters a pass used.

        Args:
            parameters: the same ones in the same order in all processes.
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
        """The items of all processes in the order of the sequence that `mine` shared out; the same in all of them."""
        if self.processes == 1:
            return list(mine)
        shares = gather_object([list(mine)])
        whole: list[Any] = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            whole[rank :: self.processes] = share
        return whole

    def sum_counts(self, counts: Mapping[str, Counts]) -> dict[str, Counts]:
        """Counts added up over processes."""
        if self.processes == 1:
            return dict(counts)
        table = torch.tensor([[c.tp, c.fp, c.fn] for c in counts.values()], device=self.device).reshape(-1, 3)
        summed = reduce(table, reduction="sum").tolist()
        return {type_: Counts(*row) for type_, row in zip(counts, summed, strict=True)}

    def average(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Each tensor's mean over processes, all of which must ask for the same names in the same order."""
        if self.processes == 1:
            return tensors
        return {name: reduce(tensor, reduction="mean") for name, tensor in tensors.items()}

    def as_in_main(self, tensors: Iterable[Tensor]) -> None:
        """Gives tensors, the same ones in all processes, the values that they have in the main process."""
        if self.processes > 1:
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.to(self.device)))

    def from_main(self, value: T) -> T:
        """What the main process gives, whatever the others do."""
        if self.processes == 1:
            return value
        told: list[T] = broadcast_object_list([value])
        return told[0]

    def first(self, message: str) -> str:
        """The first message that any process has; "" if none has one."""
        messages = gather_object([message]) if self.processes > 1 else [message]
        return next((found for found in messages if found), "")

    def start_tracking(self, run: str, settings: Mapping[str, Any]) -> None:
        """Begins a run of the project `ner_cl` in the tracker, where there is one."""
        if self._tracker is None:
            return
        names = {"wandb": "name", "trackio": "name", "mlflow": "run_name"}
        made = LOGGER_TYPE_TO_CLASS[self._tracker]
        places = [str(self._logs)] if made.requires_logging_directory else []
        self._tracking = made("ner_cl", *places, **({names[self._tracker]: run} if self._tracker in names else {}))
        self._tracking.start()
        self._tracking.store_init_configuration(dict(settings))

    def track(self, values: Mapping[str, float], *, at: int) -> None:
        """Adds a point to curves of the tracker, where there is one."""
        if self._tracking is not None:
            self._tracking.log(dict(values), step=at)

    def stop_tracking(self) -> None:
        """Ends the tracker's run; processes go on."""
        if self._tracking is not None:
            self._tracking.finish()
        self._tracking = None

    def wait(self) -> None:
        """Returns when every process has come here."""
        self._state.wait_for_everyone()
