"""The folder that holds every model a client may request."""

from pathlib import Path, PurePosixPath
from typing import final

from ner_cl_serve.problems import Problem

__all__ = ["ModelRoot"]


@final
class ModelRoot:
    """Finds model folders below a root folder, and nowhere else.

    Args:
        path: the root folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def find(self, name: str) -> Path:
        """The model folder with that name.

        Names that lead outside the root, by `..`, an absolute path or a link, count as missing.

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
        except (OSError, RuntimeError):  # name too long, symlink loop, unreadable folder
            raise missing from None
        return path

    def _holds(self, path: Path) -> bool:
        """Whether an entry of a model folder is a regular file or folder below the root."""
        return path.resolve().is_relative_to(self.path) and (path.is_file() or path.is_dir())

    def name_of(self, path: Path) -> str:
        """The folder's path below the root, or its bare name if it lies elsewhere."""
        resolved = path.resolve()
        return resolved.relative_to(self.path).as_posix() if resolved.is_relative_to(self.path) else resolved.name
