"""The configuration section of a hyperparameter sweep."""

from pydantic import Field

from ner_cl.config.base import Options

__all__ = ["SweepOptions"]


class SweepOptions(Options):
    """What `ner-cl sweep` searches.

    Attributes:
        search: what to try for each key path: `low..high`, `low..high:log` or a list of values.
        steps: number of steps, from the first, that every trial learns.
        trials: number of sets of values to try.
    """

    search: dict[str, str | list[bool | int | float | str | None]] = Field(default_factory=dict)
    steps: int = Field(2, ge=1)
    trials: int = Field(20, ge=1)
