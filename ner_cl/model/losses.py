"""Losses over tag columns (one value per word) and over yes/no decisions (one value each), all computed in fp32."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "bernoulli_kl",
    "by_column",
    "cross_entropy_each",
    "kd_full",
    "kd_merged",
    "kd_sub",
    "marginal_cross_entropy",
    "masked_mean",
    "mention_weights",
    "over_blocks",
    "unknown_as_outside",
]

_NEVER = -1e4  # a logit with no share in any softmax; finite, so that gradients stay zero, not NaN


def cross_entropy_each(
    logits: Float[Tensor, "row word tag"], targets: Int[Tensor, "row word"]
) -> Float[Tensor, "row word"]:
    """Cross entropy of every word in fp32, in nats; values at padding are undefined."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def bernoulli_kl(
    teacher: Float[Tensor, "*decision"], student: Float[Tensor, "*decision"], *, temperature: float
) -> Float[Tensor, "*decision"]:
    """KL(teacher ‖ student) of yes/no decisions at a temperature; zero when the two agree.

    Args:
        teacher: logits of yes.
        student: logits of yes for the same decisions.
        temperature: divides both logits.
    """
    teacher_logits, student_logits = teacher.float() / temperature, student.float() / temperature
    target = teacher_logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher_logits, target, reduction="none")
    return F.binary_cross_entropy_with_logits(student_logits, target, reduction="none") - entropy


def kd_sub(
    teacher: Float[Tensor, "*word old"], student: Float[Tensor, "*word old"], *, temperature: float
) -> Float[Tensor, "*word"]:
    """KL(teacher ‖ student), both normalised over the same columns, at a temperature.

    Monaikul et al. 2021, the L_KL of AddNER. Zero when the two agree.

    Args:
        teacher: logits.
        student: logits of the same columns.
        temperature: divides both logits.
    """
    target = torch.log_softmax(teacher.float() / temperature, dim=-1)
    log_probs = torch.log_softmax(student.float() / temperature, dim=-1)
    return (target.exp() * (target - log_probs)).sum(dim=-1)


def kd_full(
    teacher: Float[Tensor, "*word old"], student: Float[Tensor, "*word all"], *, temperature: float
) -> Float[Tensor, "*word"]:
    """KL(teacher ‖ student), the student normalised over all its columns; new ones have no teacher mass.

    Monaikul et al. 2021, figure 2. The loss of a fresh student is `-log(1 - m)`, where `m` is the probability it gives
    to the new columns, so this also teaches "this word is none of the new types".

    Args:
        teacher: logits of the old columns.
        student: logits of all columns, the old ones first.
        temperature: divides both logits.
    """
    old = teacher.shape[-1]
    target = torch.log_softmax(teacher.float() / temperature, dim=-1)
    log_probs = torch.log_softmax(student.float() / temperature, dim=-1)[..., :old]
    return (target.exp() * (target - log_probs)).sum(dim=-1)


def kd_merged(
    teacher: Float[Tensor, "*word old"], student: Float[Tensor, "*word all"], *, temperature: float
) -> Float[Tensor, "*word"]:
    """KL(teacher ‖ student), the student's new columns counted as `O`, which is what the teacher calls them.

    Cermelli et al. 2020, "Modeling the background for incremental learning in semantic segmentation", section 3.2. It
    asserts nothing about new types, so it suits words that are not annotated for them. Zero when the two agree on old
    types, however the student divides the rest between `O` and new types.

    The probabilities are added up as the student means them, and the temperature is applied to what results. If they
    were added up at a high temperature, new columns that say "no" would seem to claim a share of every word, and would
    be pushed further down on all of them, which is what this loss must not do.

    Args:
        teacher: logits of the old columns, `O` first.
        student: logits of all columns, the old ones first.
        temperature: divides the logits of both, the student's after its new columns were added to `O`.
    """
    old = teacher.shape[-1]
    student = student.float()
    outside = torch.cat([student[..., :1], student[..., old:]], dim=-1).logsumexp(dim=-1, keepdim=True)
    merged = torch.cat([outside, student[..., 1:old]], dim=-1)
    return kd_sub(teacher, merged, temperature=temperature)


def mention_weights(
    teacher: Float[Tensor, "*word old"], factor: float, *, decisions: bool = False
) -> Float[Tensor, "*word"] | Float[Tensor, "*word old"]:
    """`1 + (factor - 1) · p`, where `p` is the teacher's probability that a word belongs to a mention.

    Sentences collected for a new type mention old types rarely, so a mean over words hears little of what the teacher
    knows of them. (Chen et al. 2017, "Learning efficient object detection models with knowledge distillation", section
    3.2, also weigh distillation by class; there it is the background that weighs more.)

    Args:
        teacher: logits, `O` first; or of yes, for decisions.
        factor: the weight where the teacher is certain of a mention; 1 gives weights of 1.
        decisions: every logit is a yes/no decision of its own, with its own weight.
    """
    inside = teacher.float().sigmoid() if decisions else 1 - teacher.float().softmax(dim=-1)[..., 0]
    return 1 + (factor - 1) * inside


def marginal_cross_entropy(
    logits: Float[Tensor, "row word tag"], targets: Int[Tensor, "row word"], annotated: Bool[Tensor, "row type"]
) -> Float[Tensor, "row word"]:
    """Cross entropy under partial annotation, where `O` means "none of the annotated types".

    A word with a type costs `-log p(tag)`. A word labelled `O` costs `-log` of the total probability of what the
    annotation does not rule out: `O` and all columns of types that were not annotated. With all types annotated this is
    plain cross entropy; a word labelled `O` with none annotated costs zero and has no gradient.

    Args:
        logits: columns `O, B-0, I-0, B-1, …`.
        targets: tag ids.
        annotated: for each type, whether the row's annotation is complete.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    outside = log_probs.masked_fill(by_column(annotated, outside=False)[:, None, :], -torch.inf).logsumexp(dim=-1)
    # If nothing is ruled out, the sum is 1 up to rounding, and Adam would amplify the rounding to a full step.
    outside = outside.masked_fill(~annotated.any(dim=-1, keepdim=True), 0.0)
    typed = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -torch.where(targets > 0, typed, outside)


def by_column(flags: Bool[Tensor, "*row type"], *, outside: bool) -> Bool[Tensor, "*row tag"]:
    """The flag of its type for each column `O, B-0, I-0, B-1, …`, and `outside` for `O`."""
    return torch.nn.functional.pad(torch.repeat_interleave(flags, 2, dim=-1), (1, 0), value=outside)


def unknown_as_outside(
    logits: Float[Tensor, "*row word tag"], unknown: Bool[Tensor, "*row type"]
) -> Float[Tensor, "*row word tag"]:
    """Logits in which the probability of unannotated types is added to `O` and removed from their own columns.

    A loss for "this word is `O`" on them is a loss for "`O` or one of those types" on the original logits. Tags of
    other types cost the same as before, because the sum over all columns does not change.

    Args:
        logits: columns `O, B-0, I-0, B-1, …`.
        unknown: for each type, whether the row is not annotated for it.
    """
    logits = logits.float()
    merged = torch.repeat_interleave(unknown, 2, dim=-1).unsqueeze(-2)
    outside = torch.cat([logits[..., :1], logits[..., 1:].masked_fill(~merged, -torch.inf)], dim=-1)
    return torch.cat(
        [outside.logsumexp(dim=-1, keepdim=True), logits[..., 1:].masked_fill(merged, _NEVER)],
        dim=-1,
    )


def masked_mean(values: Float[Tensor, "*word"], mask: Bool[Tensor, "*word"]) -> Float[Tensor, ""]:
    """Averages values over the words in the mask; zero, with a zero gradient, if there are none."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp(min=1)


def over_blocks(terms: Sequence[Float[Tensor, ""]], how: Literal["sum", "mean"]) -> Float[Tensor, ""]:
    """Combines the losses of several blocks into one."""
    together = torch.stack(list(terms))
    return together.sum() if how == "sum" else together.mean()
