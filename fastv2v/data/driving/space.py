"""How far a condition lies outside what a generator was trained on. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import DataError

Array = NDArray[np.float64]

MOST_AXES: Final = 16
USUAL_SHARE: Final = 99.0
"""Percentage of the trained frames that lie within distance 1."""


@dataclass(frozen=True)
class Space:
    """Where trained vectors lie: their mean, the axes they vary along, and how far.

    Distances are counted in units of the one that 99 % of the trained vectors stay within: up to 1 is usual, 2 is twice
    as far from the mean as nearly anything that was trained.
    """

    mean: Array
    """(D,)."""
    axes: Array
    """Orthonormal, (K, D), widest first."""
    spread: Array
    """Standard deviation along each axis, (K,)."""
    rest: float
    """Root mean square length of what the axes do not hold."""
    usual: float
    """Mahalanobis length that 99 % of the trained vectors stay within."""

    @classmethod
    def of(cls, values: Array, floor: float) -> Space:
        """Learn the space of trained vectors.

        Args:
            values: (T, D); NaN where a value was not seen.
            floor: standard deviation that measuring alone gives every value, in its units; keeps what stood still in
                training from making every movement infinitely far.

        Returns:
            The space. Axes along which values vary less than ``floor`` are counted among the rest.

        Source:
            Principal component analysis with isotropic noise (Tipping and Bishop, 1999); the distance is that of
            Mahalanobis, with the length of the rest as one more axis.
        """
        filled = _filled(values, _mean(values))
        mean = filled.mean(axis=0)
        _, singular, axes = np.linalg.svd(filled - mean, full_matrices=False)
        variances = singular**2 / len(values)
        count = min(MOST_AXES, int((variances > floor**2).sum()))
        rest = np.sqrt(variances[count:].sum() + max(values.shape[1] - count, 1) * floor**2)
        spread = np.sqrt(variances[:count] + floor**2)
        space = cls(mean, axes[:count], spread, float(rest), 1.0)
        usual = float(np.percentile([space.distance(value) for value in filled], USUAL_SHARE))
        return cls(mean, axes[:count], spread, float(rest), max(usual, 1.0))

    def distance(self, value: Array) -> float:
        """How far a vector (D,) lies from the mean; 99 % of the trained ones stay within 1. NaN counts as usual."""
        offset = _filled(value[None], self.mean)[0] - self.mean
        scores = self.axes @ offset
        rest = offset - scores @ self.axes
        return float(np.sqrt(((scores / self.spread) ** 2).sum() + (rest @ rest) / self.rest**2) / self.usual)

    def pulled(self, value: Array, limit: float) -> Array:
        """The vector, brought straight towards the mean where it lies further out than ``limit``."""
        distance = self.distance(value)
        return value if distance <= limit else self.mean + (value - self.mean) * (limit / distance)

    def to_json(self) -> dict[str, Any]:
        """As values that JSON has."""
        return {
            "mean": rounded(self.mean),
            "axes": rounded(self.axes),
            "spread": rounded(self.spread),
            "rest": self.rest,
            "usual": self.usual,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], size: int, where: str) -> Space:
        """The inverse of ``to_json``.

        Args:
            record: its values.
            size: D that is expected.
            where: file, for messages.

        Raises:
            DataError: if numbers are missing, not finite, or not those of a space of this size.
        """
        mean = numbers(record, "mean", (size,), where)
        spread = numbers(record, "spread", (-1,), where)
        axes = numbers(record, "axes", (len(spread), size), where)
        rest, usual = (float(numbers(record, key, (), where)) for key in ("rest", "usual"))
        if min(rest, usual, *spread) <= 0:
            raise DataError(f"{where}: spreads must be positive; export the bundle again")
        return cls(mean, axes, spread, rest, usual)


def rounded(values: Array) -> Any:
    """Numbers for a JSON file, with six digits behind the point."""
    return np.round(values, 6).tolist()


def numbers(record: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Array:
    """Finite numbers of a shape from JSON values; -1 stands for any length.

    Raises:
        DataError: if they are missing, not finite or of another shape.
    """
    try:
        values = np.array(record[key], np.float64)
        if not values.size:
            values = values.reshape([max(side, 0) for side in shape])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: '{key}' is missing or holds no numbers; export the bundle again") from error
    is_alike = len(values.shape) == len(shape) and all(b in (-1, a) for a, b in zip(values.shape, shape, strict=True))
    if not is_alike or not np.isfinite(values).all():
        raise DataError(f"{where}: '{key}' has shape {values.shape} or is not finite; export the bundle again")
    return values


def _mean(values: Array) -> Array:
    """Mean of each column over what was seen; 0 for columns that never were."""
    seen = np.isfinite(values)
    return np.where(seen, values, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)


def _filled(values: Array, usual: Array) -> Array:
    return np.where(np.isfinite(values), values, usual)
