"""Blocks of earlier steps that are held still."""

from pathlib import Path

from ner_cl.strategies.old_blocks import freeze_old_blocks
from tests.tiny import tiny_model


def test_old_rows_are_frozen_and_new_ones_are_not(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, steps=[["PER"], ["LOC"], ["ORG"]])
    freeze_old_blocks(model.head)
    trained = [name for name, parameter in model.head.named_parameters() if parameter.requires_grad]
    assert trained == ["blocks.2.weight", "blocks.2.bias"]
