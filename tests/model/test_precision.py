"""Which device and number format are chosen where none is named."""

import pytest
import torch

from ner_cl.errors import ConfigError
from ner_cl.model.precision import has_gpu, resolve_device, resolve_precision


@pytest.mark.parametrize(("kind", "counts"), [("cuda", True), ("xpu", True), ("mps", False), (None, False)])
def test_apples_gpus_do_not_count(kind: str | None, counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no fp64, which projections and measurements need; what is taught and what predicts agree on that."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
    assert has_gpu() is counts
    assert resolve_device("auto") == torch.device(kind if kind and counts else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cpu:one"])
def test_a_device_that_cannot_be_used_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{name}' cannot be used .*; try 'cpu'"):
        resolve_device(name)


def test_a_format_that_is_named_is_taken() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert resolve_precision("fp32", torch.device("cuda")) == "fp32"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
