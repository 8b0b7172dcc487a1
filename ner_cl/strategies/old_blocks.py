"""Freezing the head blocks of earlier steps."""

from ner_cl.model.heads.base import Head

__all__ = ["freeze_old_blocks"]


def freeze_old_blocks(head: Head) -> None:
    """Freezes all blocks but the newest for the current step."""
    for block in list(head.blocks)[:-1]:
        block.requires_grad_(False)
