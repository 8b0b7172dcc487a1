"""The options of the spaCy component."""

from typing import Annotated, Literal

from pydantic import Field

from ner_cl.config import Options

__all__ = ["ComponentOptions"]

Probability = Annotated[float, Field(ge=0, le=1)]


class ComponentOptions(Options):
    """The settings of the component, in the pipeline's `config.cfg`.

    Attributes:
        model: a model folder, looked at when the first document comes; None where the pipeline folder holds it.
        types: only these types; all by default.
        min_score: entities below this probability are left out.
        thresholds: the same by type, in place of `min_score`.
        overwrite_ents: whether entities found here take the place of those in `doc.ents` that they overlap; else
            those stay and the ones found here give way.
        spans_key: key of `doc.spans` for everything that was found; None for none.
        nested: whether `doc.spans` holds what is found where nothing competes, so that spans may overlap: those of
            different steps (head addner), or any (spankl); `doc.ents` never overlap.
        precision: number format of the encoder; `auto` is bf16 where the processor computes in it.
        device: such as `cpu` or `cuda:0`; `auto` is a GPU where there is one.
        batch_tokens: word pieces of one batch, padding included; None for what suits the device.
    """

    model: str | None = None
    types: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    min_score: Probability = 0.0
    thresholds: dict[str, Probability] = Field(default_factory=dict)
    overwrite_ents: bool = False
    spans_key: str | None = "ner_cl"
    nested: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "cpu"
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
