"""The web page: a few files, with nothing loaded from other servers."""

from importlib.resources import files

from fastapi import APIRouter, Response

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}


def _add(name: str, content: bytes) -> None:
    async def send() -> Response:
        return Response(content, media_type=_KINDS[name.rpartition(".")[2]], headers=_HEADERS)

    path = "/" if name == "page.html" else f"/page/{name}"
    router.add_api_route(path, send, name=name)


for _file in (files("ner_cl_serve") / "page").iterdir():
    _add(_file.name, _file.read_bytes())
