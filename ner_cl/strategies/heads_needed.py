"""Which heads a method can train: shared implementations of `Strategy.refuses_head`."""

from ner_cl.config import HeadOptions
from ner_cl.registry import heads

__all__ = ["why_no_tag_logits", "why_not_one_softmax"]


def why_not_one_softmax(head: HeadOptions) -> str:
    """Why a head cannot be trained by a method that needs old and new types in one softmax; "" if it can."""
    kind = heads[head.name]
    if kind.tags_words and not kind.apart:  # type: ignore[attr-defined]
        return ""
    return f"needs one softmax over the tags of all types, which head {head.name} has not; use head extendner"


def why_no_tag_logits(head: HeadOptions) -> str:
    """Why a method cannot add to a type's logits in a head; "" if it can."""
    if heads[head.name].tags_words:  # type: ignore[attr-defined]
        return ""
    return f"head {head.name} has no logit of a type to add to; use extendner or addner, or leave it out"
