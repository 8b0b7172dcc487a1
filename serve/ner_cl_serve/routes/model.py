"""The routes that show the model in service and publish another one."""

import logging
from pathlib import Path

from fastapi import APIRouter, Depends, Request

from ner_cl_serve.bodies import read_body
from ner_cl_serve.guard import admin_only, anybody_allowed
from ner_cl_serve.problems import Problem
from ner_cl_serve.routes.responses import errors
from ner_cl_serve.schemas import ModelResponse, PublishRequest, PublishResponse, TypeRecord
from ner_cl_serve.served import version_of
from ner_cl_serve.service import service_of

__all__ = ["router"]

_log = logging.getLogger("ner_cl_serve")

router = APIRouter(tags=["model"])
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": PublishRequest.model_json_schema()}},
    }
}


@router.get("/v1/model", dependencies=[Depends(anybody_allowed)], responses=errors(401, 421))
async def get_model(request: Request) -> ModelResponse:
    """The model in service: its types, and the F1 of each after every step, as recorded in its history."""
    publisher = service_of(request).publisher
    served, before = publisher.current, publisher.previous
    return ModelResponse(
        model=served.version,
        folder=served.folder,
        loaded=served.loaded,
        encoder=Path(served.model.encoder.options.name).name,
        head=served.model.head.options.name,
        types=[TypeRecord(type=type_, step=served.model.tagset.step_of(type_)) for type_ in served.types],
        history=list(served.history),
        previous=None if before is None else version_of(before.folder, before.digest),
    )


@router.post(
    "/v1/model",
    dependencies=[Depends(admin_only)],
    responses=errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra=_BODY,
)
async def publish_model(request: Request) -> PublishResponse:
    """Put another model in service.

    The new model is loaded, tried on the probe texts and compared with the one in service. That one keeps answering
    meanwhile, and stays in service if anything fails. `{"previous": true}` brings the model before this one back.
    """
    service = service_of(request)
    body = await read_body(request, PublishRequest, service.settings.limits)
    facts = request.state.facts
    try:
        changed = await service.publisher.publish(body)
    except Problem as problem:
        service.metrics.publications.labels(problem.code).inc()
        facts["refused"] = problem.code
        raise
    service.metrics.publications.labels("published").inc()
    service.metrics.show_model(changed.model)
    facts.update(model=changed.model, replaced=changed.replaced)
    return changed
