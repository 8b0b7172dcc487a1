"""Counts, means and scatter of vectors by class, which steps can add to exactly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Moments", "Sums"]


@dataclass(frozen=True)
class Moments:
    """How the vectors of some classes are distributed.

    Attributes:
        counts: number of vectors of each class.
        means: their means; 0 for a class without vectors.
        scatter: sum over all vectors of the outer product of the deviation from their class's mean.
    """

    counts: Float[Tensor, " group"]
    means: Float[Tensor, "group part"]
    scatter: Float[Tensor, "part part"]

    @property
    def scarcity(self) -> float:
        """`√(d / (n + d))` of `n` vectors of `d` numbers: 1 without vectors, near 0 with very many."""
        size = self.means.shape[1]
        return math.sqrt(size / (float(self.counts.sum()) + size))

    def beside(self, other: "Moments") -> "Moments":
        """Those of both, if they have no class in common."""
        return Moments(
            torch.cat([self.counts, other.counts]),
            torch.cat([self.means, other.means]),
            self.scatter + other.scatter,
        )

    def plus(self, other: "Moments") -> "Moments":
        """Those of both, if they have the same classes.

        Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        counts = self.counts + other.counts
        part = other.counts / counts.clamp(min=1)
        apart = other.means - self.means
        between = (apart.T * (self.counts * part)) @ apart
        return Moments(counts, self.means + part.unsqueeze(1) * apart, self.scatter + other.scatter + between)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What to keep of them, in fp32: of the scatter, which is symmetric, the upper triangle, row by row."""
        row, column = torch.triu_indices(*self.scatter.shape)
        kept = {"counts": self.counts, "means": self.means, "scatter": self.scatter[row, column]}
        return {f"{name}_{part}": tensor.float() for part, tensor in kept.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], name: str) -> "Moments":
        """Those that `tensors` gave."""
        counts, means, triangle = (tensors[f"{name}_{part}"] for part in ("counts", "means", "scatter"))
        row, column = torch.triu_indices(means.shape[1], means.shape[1])
        scatter = triangle.new_zeros(means.shape[1], means.shape[1])
        scatter[row, column] = triangle
        scatter[column, row] = triangle
        return cls(counts, means, scatter)

    @staticmethod
    def shapes(name: str, classes: int, size: int) -> dict[str, tuple[int, ...]]:
        """The shapes of `tensors`."""
        shapes = {"counts": (classes,), "means": (classes, size), "scatter": (size * (size + 1) // 2,)}
        return {f"{name}_{part}": shape for part, shape in shapes.items()}


class Sums:
    """Adds up vectors by class."""

    def __init__(self, classes: int, size: int) -> None:
        self._counts = torch.zeros(classes, dtype=torch.double)
        self._sums = torch.zeros(classes, size, dtype=torch.double)
        self._squares = torch.zeros(size, size, dtype=torch.double)

    def add(self, vectors: Float[Tensor, "word part"], which: Bool[Tensor, "word group"]) -> None:
        """Adds the vectors that have a class.

        Args:
            vectors: any vectors.
            which: the class of each, at most one.
        """
        vectors, which = vectors[which.any(1)].double(), which[which.any(1)].double()
        self._counts += which.sum(0)
        self._sums += which.T @ vectors
        self._squares += vectors.T @ vectors

    def moments(self) -> Moments:
        """Those of all that was added."""
        means = self._sums / self._counts.clamp(min=1).unsqueeze(1)
        scatter = self._squares - (means.T * self._counts) @ means
        return Moments(self._counts.float(), means.float(), scatter.float())
