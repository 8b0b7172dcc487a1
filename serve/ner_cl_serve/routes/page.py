"""The page for people: three files, and nothing from anywhere else."""

from importlib.resources import files

from fastapi import APIRouter, Response

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}


def _add(path: str, name: str, kind: str) -> None:
    content = (files("ner_cl_serve") / "page" / name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    router.add_api_route(path, send, methods=["GET", "HEAD"], name=name)


for _path, (_name, _kind) in _FILES.items():
    _add(_path, _name, _kind)
