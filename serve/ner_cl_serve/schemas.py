"""Request and response schemas, as described in `/openapi.json`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

__all__ = [
    "Agreement",
    "Document",
    "EntitiesRequest",
    "EntitiesResponse",
    "ErrorResponse",
    "FoundEntity",
    "Health",
    "ModelResponse",
    "Offsets",
    "Probe",
    "PublishRequest",
    "PublishResponse",
    "Ready",
    "StepRecord",
    "StreamedDocument",
    "TypeRecord",
]

Offsets = Literal["code_points", "utf16"]
Score = Annotated[float, Field(ge=0, le=1)]
# pydantic matches patterns in Rust, where `$` is the very end of the text.
Text = Annotated[str, Field(pattern="^[^\\u0000]*$")]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern="^[^\\u0000]*$")]


class _Body(BaseModel):
    """A body sent by a client: values are not converted, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EntitiesRequest(_Body):
    """Texts to find entities in."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["Ada took aspirin in London."]}]})

    texts: Annotated[list[Text], Field(min_length=1, description="The texts; one is a list of one.")]
    types: Annotated[
        list[Name] | None, Field(min_length=1, description="Only these types; null for all that the model knows.")
    ] = None
    min_score: Annotated[
        float, Field(ge=0, le=1, allow_inf_nan=False, description="Entities below this probability are left out.")
    ] = 0.0
    nested: Annotated[
        bool,
        Field(description="Whether entities may overlap: those of different steps (head addner), or any (spankl)."),
    ] = False
    offsets: Annotated[
        Offsets,
        Field(
            description="What start and end count: Unicode code points, as Python does, or UTF-16 units, as JavaScript."
        ),
    ] = "code_points"


class FoundEntity(BaseModel):
    """A mention that was found."""

    start: Annotated[int, Field(ge=0, description="Its first code point (or UTF-16 unit, where asked for).")]
    end: Annotated[int, Field(ge=1, description="One past its last.")]
    type: str
    text: str
    score: Annotated[Score, Field(description="Probability of exactly this span and type.")]


class Document(BaseModel):
    """What was found in one text."""

    entities: list[FoundEntity]


_ENTITIES: list[JsonValue] = [{"start": 0, "end": 3, "type": "PER", "text": "Ada", "score": 0.98}]


class EntitiesResponse(BaseModel):
    """What was found: one document per text, in order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "step2@1f0c52d3a9be", "offsets": "code_points", "documents": [{"entities": _ENTITIES}]}
            ]
        }
    )

    model: Annotated[str, Field(description="Version of the model that made all of this response.")]
    offsets: Offsets
    documents: list[Document]


class StreamedDocument(BaseModel):
    """One line of a stream: what was found in one text."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"index": 0, "model": "step2@1f0c52d3a9be", "entities": _ENTITIES}]}
    )

    index: Annotated[int, Field(ge=0, description="Position of the text in the request.")]
    model: str
    entities: list[FoundEntity]


class TypeRecord(BaseModel):
    """A type that the model knows."""

    type: str
    step: Annotated[int, Field(ge=1, description="The step that taught it.")]


class StepRecord(BaseModel):
    """What the model's history says about a step."""

    step: int
    types: list[str]
    sentences: int | None
    finished: str | None
    f1: Annotated[dict[str, Score | None], Field(description="F1 of every type after the step; null where unknown.")]
    measured: Annotated[
        dict[str, str], Field(description="`gold` or, where none was at hand, `agreement` with the model before.")
    ]


class ModelResponse(BaseModel):
    """The model in service."""

    model: Annotated[str, Field(description="Its version: the folder's name and a digest of what is in it.")]
    folder: Annotated[str, Field(description="Below the model root.")]
    loaded: Annotated[str, Field(description="When, in UTC.")]
    encoder: str
    head: str
    types: list[TypeRecord]
    history: list[StepRecord]
    previous: Annotated[str | None, Field(description="Version that `previous` would bring back.")]


class PublishRequest(_Body):
    """Which model to put in service."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "step3", "min_agreement": 0.9}],
            "oneOf": [
                {"required": ["model"], "properties": {"model": {"type": "string"}, "previous": {"const": False}}},
                {"required": ["previous"], "properties": {"model": {"type": "null"}, "previous": {"const": True}}},
            ],
        }
    )

    model: Annotated[Name | None, Field(description="A model folder, by its path below the model root.")] = None
    previous: Annotated[bool, Field(description="Whether the model before this one is to come back.")] = False
    min_agreement: Annotated[
        float | None,
        Field(ge=0, le=1, allow_inf_nan=False, description="Refuse if the models agree less on types both know."),
    ] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "PublishRequest":
        if (self.model is None) != self.previous:
            raise ValueError('give either "model", a folder, or "previous": true')
        return self


class Agreement(BaseModel):
    """How many spans of a type both models found, or only one of them."""

    both: int
    only_old: int
    only_new: int
    f1: Annotated[Score | None, Field(description="2·both / (2·both + only_old + only_new); null where all are 0.")]


class Probe(BaseModel):
    """The old and the new model compared on the same texts, over the types that both know."""

    texts: int
    f1: Score | None
    types: dict[str, Agreement]


class PublishResponse(BaseModel):
    """The model now in service, and how it differs from the one before."""

    model: str
    replaced: str
    types_added: list[str]
    types_removed: list[str]
    probe: Probe
    persisted: Annotated[bool, Field(description="Whether a restart will serve this model again.")]
    seconds: float


class Ready(BaseModel):
    """Says that requests are answered, and by which model."""

    status: Literal["ready"]
    model: str


class Health(BaseModel):
    """Says that the process is alive."""

    status: Literal["ok"]


class Error(BaseModel):
    """What went wrong."""

    code: Annotated[str, Field(description="For programs; does not change between versions.")]
    message: Annotated[str, Field(description="One sentence for people.")]


class ErrorResponse(BaseModel):
    """Any response that is not a success."""

    error: Error
