"""The route that finds entities."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar, final

from fastapi import APIRouter, Depends, Request, Response
from pydantic_core import to_json

from ner_cl.errors import ModelError
from ner_cl.types import Entity
from ner_cl_serve.bodies import read_body
from ner_cl_serve.fair_queue import Kind, QueueFull
from ner_cl_serve.guard import anybody_allowed
from ner_cl_serve.offsets import utf16_spans
from ner_cl_serve.problems import Problem
from ner_cl_serve.routes.line_stream import NDJSON, LineStream
from ner_cl_serve.routes.responses import errors
from ner_cl_serve.schemas import EntitiesRequest, EntitiesResponse, StreamedDocument
from ner_cl_serve.served import ServedModel
from ner_cl_serve.service import Service, service_of

__all__ = ["router"]

_GONE = 499  # only for the log: the client left and never sees this response
T = TypeVar("T")

router = APIRouter(tags=["entities"])
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": EntitiesRequest.model_json_schema()}},
    }
}
# FoundEntity is already part of the description, through EntitiesResponse.
_LINE = StreamedDocument.model_json_schema(ref_template="#/components/schemas/{model}")
_LINE.pop("$defs")
_OK: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EntitiesResponse,
        "description": f"What was found; with `Accept: {NDJSON}` a JSON object a line for each text, as it is found.",
        "content": {NDJSON: {"schema": _LINE}},
    }
}


@router.post(
    "/v1/entities",
    dependencies=[Depends(anybody_allowed)],
    response_class=Response,
    responses={**_OK, **errors(400, 401, 408, 413, 415, 421, 422, 429, 500, 503)},
    openapi_extra=_BODY,
)
async def find_entities(request: Request) -> Response:
    """Find entities in one text or many.

    One model finds all entities of a response, even while another one is being published, and the response names its
    version. Ask for a stream (`Accept: application/x-ndjson`) if there are many texts or long ones.
    """
    service = service_of(request)
    try:
        with ExitStack() as open_request:
            open_request.enter_context(service.batcher.admit())
            body = await read_body(request, EntitiesRequest, service.settings.limits)
            asked = _checked(body, service)
            request.state.facts.update(asked.facts)
            if NDJSON in request.headers.get("accept", "").lower():
                return await _stream(request, asked, open_request)
            found = await _unless_gone(request, service.batcher.find(asked.kind, body.texts), asked.seconds)
    except QueueFull as full:
        message = f"too much waits already; try again in {full.seconds} s"
        raise Problem(429, "queue_full", message, {"Retry-After": str(full.seconds)}) from None
    if found is None:
        return Response(status_code=_GONE)
    documents = [{"entities": asked.entities(*pair)} for pair in zip(body.texts, found, strict=True)]
    answer = {"model": asked.served.version, "offsets": body.offsets, "documents": documents}
    return Response(to_json(answer), media_type="application/json")


@final
@dataclass(frozen=True, slots=True)
class _Asked:
    """A validated request, and the model that answers all of it."""

    service: Service
    served: ServedModel
    body: EntitiesRequest

    @property
    def kind(self) -> Kind:
        types = None if self.body.types is None else tuple(self.body.types)
        return Kind(self.served, types, self.body.nested)

    @property
    def seconds(self) -> float:
        return self.service.settings.limits.answer_seconds

    @property
    def facts(self) -> dict[str, Any]:
        """For the log: how much was asked, and of which model."""
        characters = sum(map(len, self.body.texts))
        return {"texts": len(self.body.texts), "characters": characters, "model": self.served.version}

    def entities(self, text: str, found: Sequence[Entity]) -> list[dict[str, Any]]:
        """The entities of one text as sent; also counts them."""
        kept = [entity for entity in found if entity.score >= self.body.min_score]
        metrics = self.service.metrics
        metrics.texts.inc()
        metrics.characters.inc(len(text))
        for entity in kept:
            metrics.entities.labels(entity.type).inc()
        utf16 = self.body.offsets == "utf16"
        spans = utf16_spans(text, kept) if utf16 else [(entity.start, entity.end) for entity in kept]
        return [
            {"start": start, "end": end, "type": entity.type, "text": entity.text, "score": round(entity.score, 4)}
            for (start, end), entity in zip(spans, kept, strict=True)
        ]


def _checked(body: EntitiesRequest, service: Service) -> _Asked:
    """The request with the model in service; raises Problem if it exceeds a limit or the model cannot answer it."""
    limits, served = service.settings.limits, service.publisher.current
    if len(body.texts) > limits.texts:
        message = f"texts holds {len(body.texts)} texts, more than {limits.texts}; send them in parts"
        raise Problem(422, "too_many_texts", message)
    for index, text in enumerate(body.texts):
        if len(text) > limits.characters:
            message = f"texts[{index}] has {len(text)} characters, more than {limits.characters}; send it in parts"
            raise Problem(422, "text_too_long", message)
    try:
        served.model.check_types(body.types)
    except ModelError as error:
        raise Problem(422, "cannot_be_asked", str(error)) from None
    return _Asked(service, served, body)


async def _unless_gone(request: Request, work: Awaitable[T], seconds: float) -> T | None:
    """The result of `work`, or None if the client leaves first; raises Problem if it takes too long."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            return None
    finally:
        leaving.cancel()
        working.cancel()
    message = f"there was no answer within {seconds:g} seconds; send less at once, or try again later"
    raise Problem(503, "too_slow", message, {"Retry-After": "5"})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(request: Request, asked: _Asked, open_request: ExitStack) -> Response:
    """A response computed while it is sent; waits for the first line, so that errors can still be reported."""
    answers = asked.service.batcher.stream(asked.kind, asked.body.texts)
    first = await _unless_gone(request, anext(answers), asked.seconds)
    if first is None:
        return Response(status_code=_GONE)
    held = AsyncExitStack()
    held.enter_context(open_request.pop_all())
    held.push_async_callback(answers.aclose)
    return LineStream(_lines(asked, first, answers), held, seconds=asked.seconds)


async def _lines(asked: _Asked, first: list[Entity], rest: AsyncIterator[list[Entity]]) -> AsyncIterator[bytes]:
    found = first
    for index, text in enumerate(asked.body.texts):
        if index:
            found = await anext(rest)
        line = {"index": index, "model": asked.served.version, "entities": asked.entities(text, found)}
        yield to_json(line) + b"\n"
