"""Kinds of modules: what a step may have of its own in the top layers of a shared encoder."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ner_cl.errors import MissingExtra
from ner_cl.model.subnetworks.trunk import ONE_PASS_AT_A_TIME, TrunkPass, apply_layer

__all__ = ["Adapters", "Bottleneck", "Copies", "Kind", "Ladders", "Lora"]


class Kind(nn.Module, ABC):
    """The parts of all steps that are of one kind. A fresh part computes what the encoder itself does.

    Args:
        hidden: of the encoder.
        size: of a bottleneck, or rank.
    """

    beside = False
    """Whether it runs beside the top layers, reading what they give, word by word, and never other words."""
    pretrained = False
    """Whether a part starts from pre-trained weights, so that it learns at the encoder's rate."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.size = size
        self.steps = nn.ModuleDict()

    @abstractmethod
    def add(self, step: int, top: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        """Makes the part of a step on the encoder's top layers."""

    @abstractmethod
    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """What one of the top layers makes of the states below it, for a step.

        Args:
            step: whose part.
            number: of the layer, from 0 at the lowest of the top layers.
            hidden: the states below it.
            trunk: the encoder's own pass.
            top: the encoder's own top layers.
        """

    def learn(self, step: int) -> None:
        """Leaves only the part of one step in training mode and with gradients."""
        self.eval().requires_grad_(False)
        self.steps[str(step)].train().requires_grad_(True)


@final
class Copies(Kind):
    """The top layers once more, to be trained whole."""

    pretrained = True

    def add(self, step: int, top: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        """Copies the layers."""
        self.steps[str(step)] = nn.ModuleList(copy.deepcopy(layer) for layer in top)

    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """The copy's output."""
        return apply_layer(_part(self.steps, step)[number], hidden, trunk.calls[number])


@final
class Bottleneck(nn.Module):
    """`up(gelu(down(x)))`, zero at first (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP").

    Args:
        hidden: size of its input and output.
        size: between the two.
        generator: draws the first half; the second starts at 0.
    """

    def __init__(self, hidden: int, size: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, hidden)
        with torch.no_grad():
            self.down.weight.normal_(0.0, hidden**-0.5, generator=generator)
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, hidden: Float[Tensor, "*word hidden"]) -> Float[Tensor, "*word hidden"]:
        """What is added to the states."""
        added: Tensor = self.up(F.gelu(self.down(hidden)))
        return added


class _Bottlenecks(Kind, ABC):
    """Kinds with a bottleneck a layer."""

    def add(self, step: int, top: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        """Makes a bottleneck a layer."""
        device = next(top[0].parameters()).device
        made = nn.ModuleList(Bottleneck(self.hidden, self.size, generator) for _ in top)
        self.steps[str(step)] = made.to(device)

    def bottleneck(self, step: int, number: int) -> Bottleneck:
        """That of a step behind or beside one of the top layers."""
        found = _part(self.steps, step)[number]
        assert isinstance(found, Bottleneck)
        return found


@final
class Adapters(_Bottlenecks):
    """A bottleneck behind each of the top layers, which stay as they are (Pfeiffer et al. 2021, "AdapterFusion")."""

    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """The encoder's layer and what the bottleneck adds to it."""
        output = apply_layer(top[number], hidden, trunk.calls[number])
        added: Tensor = self.bottleneck(step, number)(output)
        return output + added


@final
class Ladders(_Bottlenecks):
    """Bottlenecks beside the top layers, which run once for all steps (Sung et al. 2022, "LST: Ladder Side-Tuning").

    A layer's bottleneck reads what the encoder's own layer gave, plus what the ladder added below; the ladder never
    leads back into the encoder. A step costs next to nothing to run, but its words see other words only as the shared
    encoder shows them.
    """

    beside = True

    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """The encoder's own output, what the ladder added so far, and one rung more."""
        output = trunk.states[number + 1] + (hidden - trunk.states[number])
        added: Tensor = self.bottleneck(step, number)(output)
        return output + added


@final
class Lora(Kind):
    """Low-rank changes of the weights of the top layers, through `peft`.

    Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models". They hang on one frozen copy of the layers, so
    that the encoder's own keep their names and plain weights.

    Raises:
        MissingExtra: if `peft` is not installed.
    """

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__(hidden, size)
        try:
            import peft  # noqa: F401  # an extra
        except ImportError:
            raise MissingExtra("modules of kind lora need peft; pip install 'ner-cl[lora]'") from None

    def add(self, step: int, top: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        """Makes the changes of a step, zero at first."""
        import peft

        if not len(self.steps):
            self.steps["all"] = nn.ModuleList(copy.deepcopy(layer) for layer in top)
        linear = {name for name, module in top[0].named_modules() if isinstance(module, nn.Linear)}
        config = peft.LoraConfig(r=self.size, lora_alpha=2 * self.size, target_modules=sorted(linear))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # one a step is what is meant
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            peft.inject_adapter_in_model(config, self.steps["all"], adapter_name=f"step{step}")
        self.learn(step)

    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """The layer's output with a step's changes."""
        with ONE_PASS_AT_A_TIME:  # which changes act is written on the layers
            layer = _part(self.steps, "all")[number]
            _activate(layer, f"step{step}")
            return apply_layer(layer, hidden, trunk.calls[number])

    def learn(self, step: int) -> None:
        """Leaves only the changes of one step with gradients."""
        self.eval()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(f".step{step}." in name)


def _part(steps: nn.ModuleDict, step: int | str) -> nn.ModuleList:
    part = steps[str(step)]
    assert isinstance(part, nn.ModuleList)
    return part


def _activate(layer: nn.Module, name: str) -> None:
    """Has the changes of that name act in a layer, and no others."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [module for module in layer.modules() if isinstance(module, BaseTunerLayer)]
    if all(module.active_adapters == [name] for module in tuned):
        return
    trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    for module in tuned:
        module.set_adapter(name)
    for parameter, flag in trained:  # peft would have what acts train, and nothing else
        parameter.requires_grad_(flag)
