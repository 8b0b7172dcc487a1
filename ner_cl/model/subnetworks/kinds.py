"""Kinds of modules: the parts that a step may have of its own in the top layers of a shared encoder."""

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
    """The parts of all steps, all of one kind. A fresh part leaves the encoder's own output unchanged.

    Args:
        hidden: hidden size of the encoder.
        size: size of a bottleneck, or rank.
    """

    beside = False
    """Whether a part runs beside the top layers, reading their output word by word and never that of other words."""
    pretrained = False
    """Whether a part starts from pre-trained weights, so that it learns at the encoder's rate."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.size = size
        self.steps = nn.ModuleDict()

    @abstractmethod
    def add(self, step: int, top: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        """Creates the part of a step for the encoder's top layers."""

    @abstractmethod
    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """Computes the output of one of the top layers for a step.

        Args:
            step: whose part to use.
            number: index of the layer, from 0 for the lowest top layer.
            hidden: the states below the layer.
            trunk: the encoder's own pass.
            top: the encoder's own top layers.
        """

    def learn(self, step: int) -> None:
        """Leaves only the part of one step in training mode and with gradients."""
        self.eval().requires_grad_(False)
        self.steps[str(step)].train().requires_grad_(True)


@final
class Copies(Kind):
    """Full copies of the top layers, all of whose weights are trained."""

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
        """Runs the copy of the layer."""
        return apply_layer(_part(self.steps, step)[number], hidden, trunk.calls[number])


@final
class Bottleneck(nn.Module):
    """`up(gelu(down(x)))`, zero at first (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP").

    Args:
        hidden: size of input and output.
        size: size of the bottleneck between them.
        generator: draws the weights of `down`; `up` starts at 0.
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
        """Computes what is added to the states."""
        added: Tensor = self.up(F.gelu(self.down(hidden)))
        return added


class _Bottlenecks(Kind, ABC):
    """Kinds with one bottleneck per layer."""

    def add(self, step: int, top: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        """Creates one bottleneck per layer."""
        device = next(top[0].parameters()).device
        made = nn.ModuleList(Bottleneck(self.hidden, self.size, generator) for _ in top)
        self.steps[str(step)] = made.to(device)

    def bottleneck(self, step: int, number: int) -> Bottleneck:
        """A step's bottleneck for one of the top layers."""
        found = _part(self.steps, step)[number]
        assert isinstance(found, Bottleneck)
        return found


@final
class Adapters(_Bottlenecks):
    """A bottleneck after each of the top layers, which do not change (Pfeiffer et al. 2021, "AdapterFusion")."""

    def layer(
        self,
        step: int,
        number: int,
        hidden: Float[Tensor, "row place hidden"],
        trunk: TrunkPass,
        top: Sequence[nn.Module],
    ) -> Float[Tensor, "row place hidden"]:
        """Runs the encoder's layer and adds the bottleneck of its output."""
        output = apply_layer(top[number], hidden, trunk.calls[number])
        added: Tensor = self.bottleneck(step, number)(output)
        return output + added


@final
class Ladders(_Bottlenecks):
    """Bottlenecks beside the top layers, which run once for all steps (Sung et al. 2022, "LST: Ladder Side-Tuning").

    A layer's bottleneck reads the output of the encoder's own layer plus what the ladder added below; the ladder never
    feeds back into the encoder. A step costs next to nothing to run, but its words see other words only through the
    shared encoder.
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
        """Adds this layer's bottleneck to the encoder's own output plus what the ladder added so far."""
        output = trunk.states[number + 1] + (hidden - trunk.states[number])
        added: Tensor = self.bottleneck(step, number)(output)
        return output + added


@final
class Lora(Kind):
    """Low-rank changes of the weights of the top layers, through `peft`.

    Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models". They are attached to one frozen copy of the
    layers, so that the encoder's own layers keep their names and plain weights.

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
        """Creates the changes of a step, zero at first."""
        import peft

        if not len(self.steps):
            self.steps["all"] = nn.ModuleList(copy.deepcopy(layer) for layer in top)
        linear = {name for name, module in top[0].named_modules() if isinstance(module, nn.Linear)}
        config = peft.LoraConfig(r=self.size, lora_alpha=2 * self.size, target_modules=sorted(linear))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # one per step is intended
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
        """Runs the layer with the changes of a step."""
        with ONE_PASS_AT_A_TIME:  # the layers themselves store which changes are active
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
    """Activates the changes of that name in a layer, and no others."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [module for module in layer.modules() if isinstance(module, BaseTunerLayer)]
    if all(module.active_adapters == [name] for module in tuned):
        return
    trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    for module in tuned:
        module.set_adapter(name)
    for parameter, flag in trained:  # peft makes exactly the active changes trainable
        parameter.requires_grad_(flag)
