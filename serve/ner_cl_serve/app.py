"""The ASGI application: the routes of a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import ner_cl
from ner_cl_serve.envelope import Envelope
from ner_cl_serve.problems import install_problem_handlers
from ner_cl_serve.routes import entities, health, model, page
from ner_cl_serve.service import Service

__all__ = ["create_app"]

_DESCRIPTION = """Finds named entities in text with a model that goes on learning.

Offsets count Unicode code points; ask for `"offsets": "utf16"` where strings are indexed in UTF-16 units, as JavaScript
does. Every error has the same shape: a code for programs and one sentence for people."""


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        service.batcher.start()
        yield {"metrics": service.metrics}  # for connections, which refuse what the application never sees
        await service.batcher.stop()

    app = FastAPI(
        title="ner_cl",
        version=ner_cl.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # Those pages load scripts from third-party servers.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    install_problem_handlers(app)
    for routes in (entities, model, health, page):
        app.include_router(routes.router)
    if service.settings.access != "token":
        _describe_open_routes(app)
    app.add_middleware(Envelope, metrics=service.metrics, draining=service.draining)
    return app


def _describe_open_routes(app: FastAPI) -> None:
    """Drops the token requirement from /openapi.json, except for publishing."""
    for path in app.openapi()["paths"].values():
        for operation in path.values():
            if not operation["operationId"].startswith(model.publish_model.__name__):
                operation.pop("security", None)
