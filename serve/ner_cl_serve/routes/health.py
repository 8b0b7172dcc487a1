"""Health, readiness and metrics of the service."""

from fastapi import APIRouter, Depends, Request, Response

from ner_cl_serve.guard import anybody_allowed
from ner_cl_serve.metrics import CONTENT_TYPE
from ner_cl_serve.problems import Problem
from ner_cl_serve.routes.responses import errors
from ner_cl_serve.schemas import Health, Ready
from ner_cl_serve.service import service_of

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=errors(503))
async def healthz(request: Request) -> Health:
    """Whether the process can still answer; if not, restart the service."""
    if not service_of(request).batcher.alive:
        raise Problem(503, "dead", "the thread that runs the model has ended; restart the service")
    return Health(status="ok")


@router.get("/readyz", responses=errors(503))
async def readyz(request: Request) -> Ready:
    """Whether the service accepts requests; no longer once it was told to stop."""
    service = service_of(request)
    if service.draining.begun or not service.batcher.alive:
        raise Problem(503, "not_ready", "the service is stopping; ask another one")
    return Ready(status="ready", model=service.publisher.current.version)


@router.get(
    "/metrics",
    dependencies=[Depends(anybody_allowed)],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401, 421)},
)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(service_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})
