"""The folder that holds every model a client may ask for."""

from pathlib import Path, PurePosixPath
from typing import final

from ner_cl_serve.problems import Problem

__all__ = ["ModelRoot"]


@final
class ModelRoot:
    """Finds model folders below a folder, and nothing anywhere else.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def find(self, name: str) -> Path:
        """The model folder of that name.

        What leads outside, by `..`, by an absolute path or by a link, is answered as what does not exist.

        Raises:
            Problem: if there is none.
        """
        missing = Problem(404, "model_not_found", f"there is no model folder {name[:100]!r} below the model root")
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\0" in name:
            raise missing
        try:
            path = self.path.joinpath(*parts.parts).resolve()
            if not (path.is_relative_to(self.path) and path.is_dir() and (path / "labels.json").is_file()):
                raise missing
            if not all(self._holds(inner) for inner in path.rglob("*")):
                raise missing
        except (OSError, RuntimeError):  # a name that is too long, a loop of links, a folder that may not be read
            raise missing from None
        return path

    def _holds(self, path: Path) -> bool:
        """Whether something in a model folder is an ordinary file or folder, and lies below the root."""
        return path.resolve().is_relative_to(self.path) and (path.is_file() or path.is_dir())

    def name_of(self, path: Path) -> str:
        """What a folder is called below the root; its bare name where it lies elsewhere."""
        resolved = path.resolve()
        return resolved.relative_to(self.path).as_posix() if resolved.is_relative_to(self.path) else resolved.name
