"""The options of the spaCy component, and what it says in a pipeline's config and requirements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from spacy.language import Language
from spacy.util import get_minor_version_range, load_config, split_requirement

import ner_cl
from ner_cl.config import Options
from ner_cl.errors import ConfigError
from ner_cl.registry import nearest

__all__ = ["ComponentOptions", "enter_pipeline", "forget_model", "saved_model"]

_DISTRIBUTION = "ner-cl"

Probability = Annotated[float, Field(ge=0, le=1)]


class ComponentOptions(Options):
    """Settings of the component in the pipeline's `config.cfg`.

    Attributes:
        model: model folder, first read when the first document arrives; None if the pipeline folder holds the model.
        types: find only these types; all by default.
        min_score: leave out entities whose probability is below this.
        thresholds: the same by type; overrides `min_score`.
        overwrite_ents: whether entities found here replace those in `doc.ents` that they overlap; otherwise those stay,
            and the ones found here are left out.
        spans_key: key in `doc.spans` for everything that was found; None for none.
        nested: whether `doc.spans` holds what is found where entities do not compete, so that spans may overlap: those
            of different steps (head addner), or any (spankl); `doc.ents` never overlap.
        by_sentence: whether a document whose sentences are known (`doc.sents`) is read sentence by sentence, as models
            learn; lines are read one by one in any case.
        precision: number format of the encoder; `auto` is bf16 if the processor computes in it, else fp32.
        device: such as `cpu` or `cuda:0`; `auto` is a GPU if there is one.
        batch_tokens: word pieces per batch, padding included; None for a size that suits the device.
    """

    model: str | None = None
    types: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    min_score: Probability = 0.0
    thresholds: dict[str, Probability] = Field(default_factory=dict)
    overwrite_ents: bool = False
    spans_key: str | None = "ner_cl"
    nested: bool = False
    by_sentence: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "cpu"
    batch_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _nested_has_a_place(self) -> "ComponentOptions":
        if self.nested and self.spans_key is None:
            raise ValueError("nested needs a spans_key, for doc.ents cannot overlap; give one, or leave nested out")
        return self

    def check_thresholds(self, types: Sequence[str], name: str) -> None:
        """Raises ConfigError, which begins with `name`, if there is a threshold for another type than these."""
        for type_ in self.thresholds:
            if type_ not in types:
                known = ", ".join(types)
                raise ConfigError(f"{name}.thresholds: unknown type {type_}{nearest(type_, types)}; known: {known}")


def enter_pipeline(nlp: Language, name: str, options: ComponentOptions) -> None:
    """Checks that a new component fits the others of its pipeline, and adds ner_cl to the pipeline's requirements.

    Raises:
        ConfigError: if another component writes to the same `spans_key`: its spans would be lost.
    """
    key = options.spans_key
    for other, pipe in nlp.components:
        others = getattr(pipe, "options", None)
        if key is not None and isinstance(others, ComponentOptions) and others.spans_key == key:
            raise ConfigError(
                f"{name}: spans_key: {key!r} is that of the component {other} too; give another one, such as {name!r}"
            )
    _require_this_package(nlp)


def saved_model(folder: Path) -> str | None:
    """The option `model` in the config that was saved with a component's folder; None if it names none."""
    file = folder.parent / "config.cfg"
    if not file.is_file():
        return None
    component = load_config(file, interpolate=True).get("components", {}).get(folder.name, {})
    model: str | None = component.get("model")
    return model


def forget_model(nlp: Language, component: object) -> None:
    """Takes the option `model` out of a pipeline's config, which would otherwise name a model no longer in use."""
    for name, pipe in nlp.components:
        if pipe is component:
            nlp.get_pipe_config(name)["model"] = None


def _require_this_package(nlp: Language) -> None:
    """Adds ner_cl to the pipeline's requirements, which `spacy package` detects by itself for setuptools only."""
    if ner_cl.__version__ == "0+unknown":  # a source tree that was never installed
        return
    others = [text for text in nlp.meta.get("requirements", []) if split_requirement(text)[0] != _DISTRIBUTION]
    own = _DISTRIBUTION + get_minor_version_range(ner_cl.__version__)
    nlp.meta["requirements"] = [*others, own]
