"""Mean and standard deviation over runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["Spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A score over several runs.

    Attributes:
        mean: mean over the runs in which the score is defined; None if there are none.
        sd: sample standard deviation over these runs; None for fewer than two.
        runs: number of these runs.
    """

    mean: float | None
    sd: float | None = None
    runs: int = 1

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        """Return the spread of the defined values.

        Example:
            >>> Spread.of([0.2, 0.4, None]).mean, Spread.of([0.2]).sd
            (0.30000000000000004, None)
        """
        known = [value for value in values if value is not None]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))

    def percent(self, *, signed: bool = False) -> str:
        """Format the mean times 100, with ± the standard deviation if there is one; "" if undefined."""
        if self.mean is None:
            return ""
        sign = "+" if signed else ""
        return f"{100 * self.mean:{sign}.1f}" + (f" ± {100 * self.sd:.1f}" if self.sd is not None else "")
