"""Chooses the model a service starts with: the last published one, or the one named on the command line."""

import logging
from pathlib import Path

from ner_cl.errors import ConfigError, ModelError, NerClError
from ner_cl_serve.model_root import ModelRoot
from ner_cl_serve.problems import Problem
from ner_cl_serve.served import ServedModel, load_served
from ner_cl_serve.settings import Settings
from ner_cl_serve.state import Published, State, StateFile

__all__ = ["restore"]

_log = logging.getLogger("ner_cl_serve")


def restore(model: Path, settings: Settings, file: StateFile) -> tuple[ServedModel, State, State]:
    """The model to start with, the state of the service, and what the state file is to hold until a publication.

    A published model comes back if the service is started with the same MODEL as when it was published; a different
    MODEL is taken as a decision and served instead. If the published model can no longer be read, the one before it
    is tried, then MODEL; the file goes on naming the published one, which may be back at the next start (on a volume
    that was mounted late, say).

    Raises:
        ModelError: if MODEL is needed and cannot be read.
        ConfigError: if MODEL lies outside the model root, or the state cannot be read.
    """
    root = ModelRoot(settings.model_root)
    path = model.resolve()
    if not path.is_dir():
        raise ModelError(f"{model}: no such model folder; train one with `ner-cl train` or `ner-cl learn`")
    if not path.is_relative_to(root.path) or path == root.path:
        raise ConfigError(f"{model}: lies outside the model root {root.path}; give another --model-root")
    remembered = file.read()
    if remembered is not None and remembered.started_with != str(path):
        remembered = None
    wanted = [] if remembered is None else [(remembered.model, remembered.previous), (remembered.previous, None)]
    for published, before in wanted:
        if published is not None and (served := _reload(published, root, settings)) is not None:
            if served.folder != root.name_of(path):
                facts = {"model": served.version, "given": model.name}
                _log.info("published model comes back", extra={"facts": facts})
            state = State(str(path), Published(served.folder, served.digest), before)
            return served, state, state if remembered is None or published == remembered.model else remembered
    served = load_served(path, settings)
    state = State(str(path), Published(served.folder, served.digest))
    return served, state, remembered or state


def _reload(published: Published, root: ModelRoot, settings: Settings) -> ServedModel | None:
    """Loads a model that was published earlier; if it is gone or broken, logs that and returns None."""
    try:
        served = load_served(root.find(published.folder), settings)
    except (Problem, NerClError) as error:
        _log.warning("published model lost", extra={"facts": {"folder": published.folder, "reason": str(error)}})
        return None
    if served.digest != published.digest:
        _log.warning("published model changed", extra={"facts": {"folder": published.folder, "now": served.version}})
    return served
