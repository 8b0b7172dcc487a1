"""The configuration section of a hyperparameter sweep."""

from pydantic import Field

from ner_cl.config.base import Options

__all__ = ["SweepOptions"]


class SweepOptions(Options):
    """What `ner-cl sweep` searches.

    Attributes:
        search: key path → `low..high`, `low..high:log` or a list of values.
        steps: only the first so many steps of the stream count.
        trials: how many sets of values are tried.
    """

    search: dict[str, str | list[bool | int | float | str | None]] = Field(default_factory=dict)
    steps: int = Field(2, ge=1)
    trials: int = Field(20, ge=1)
