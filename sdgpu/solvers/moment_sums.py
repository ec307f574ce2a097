"""Sums over rows that know a feature model: they add up, over blocks, files, workers and days.

With features Phi (n, k), targets Y (n, c) and weights w (n,), an offset y0 (c,) that is
taken off the targets first:

    G = Phi' diag(w) Phi,   B = Phi' diag(w) (Y - y0),   s = Phi' w,   t = (Y - y0)' w,
    q = ((Y - y0)^2)' w,    W = sum w,                   n.

Ridge with an intercept is ridge on features and targets less their means; its sums follow from these.
The offset keeps the digits of targets far from 0 (dates, energies) where features are float32.

Sums are float64. Where features are float32 some blocks are summed in float64 too, and what differs (dG, dB
and ds, and E of the features themselves) says how far the rest is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import integer, positive
from sdgpu.backend.scaling import column_units
from sdgpu.backend.sparse_rows import is_csr

__all__ = ["MomentSums"]

PART = 1024  # rows that are widened together
_ERRORS = ("gram_error", "cross_error", "sum_error", "square_error")
_SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_squares")


@dataclass(eq=False)
class MomentSums:
    """G, B, s, t, q, W and n; grows in place.

    Attributes
    ----------
    offset : array (c,)
        y0.
    gram : array (k, k)
        G.
    cross : array (k, c)
        B.
    feature_sum : array (k,)
        s.
    target_sum, target_squares : array (c,)
        t and q.
    weight : float
        W.
    rows : int
        n.
    audited : int
        Rows that were summed in float64 too.
    gram_error, cross_error, sum_error : array (k, k), (k, c), (k,)
        dG, dB and ds of those rows: float32 less float64.
    square_error : array (k, k)
        E' diag(w) E of those rows.
    """

    offset: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    feature_sum: np.ndarray
    target_sum: np.ndarray
    target_squares: np.ndarray
    weight: float = 0.0
    rows: int = 0
    audited: int = 0
    gram_error: np.ndarray | None = field(default=None)
    cross_error: np.ndarray | None = field(default=None)
    sum_error: np.ndarray | None = field(default=None)
    square_error: np.ndarray | None = field(default=None)

    @classmethod
    def zeros(cls, k: int, c: int, offset: np.ndarray | None = None) -> MomentSums:
        """Nothing yet, of k features and c outputs."""
        y0 = np.zeros(c) if offset is None else np.array(offset, dtype=np.float64)
        return cls(y0, np.zeros((k, k)), np.zeros((k, c)), np.zeros(k), np.zeros(c), np.zeros(c))

    @property
    def size(self) -> int:
        """k."""
        return len(self.gram)

    @property
    def outputs(self) -> int:
        """c."""
        return len(self.offset)

    @classmethod
    def of_block(
        cls, phi: Any, Y: Any, weights: Any, offset: np.ndarray, *, exact: Any = None
    ) -> MomentSums:
        """Sums of one block: features (b, k), targets (b, c) and weights (b,) or None.

        Products are in the precision of `phi`. `exact` are the same features in float64, of a block that is
        audited.

        Notes
        -----
        b k^2 multiplications, of which symmetry saves half where the library knows of it.
        """
        sums = cls.zeros(int(phi.shape[1]), len(offset), offset)
        sums._add(phi, Y, weights, exact=exact)
        return sums

    def _add(self, phi: Any, Y: Any, weights: Any, *, exact: Any) -> None:
        G, B, s, residual = self._products(phi, Y, weights)
        self.gram += G
        self.cross += B
        self.feature_sum += s
        w = None if weights is None else to_numpy(weights).astype(np.float64)
        weighted = residual if w is None else residual * w[:, None]
        self.target_sum += weighted.sum(axis=0)
        with np.errstate(over="ignore"):  # infinite: training errors are said to leave float64
            self.target_squares += (weighted * residual).sum(axis=0)
        self.weight += float(len(residual) if w is None else w.sum())
        self.rows += len(residual)
        if exact is not None:
            G64, B64, s64, _ = self._products(exact, Y, weights)
            E = compat.array_namespace(phi).astype(phi, exact.dtype) - exact
            self._count_errors((G - G64, B - B64, s - s64, self._products(E, Y, weights)[0]))
            self.audited += len(residual)

    def _count_errors(self, errors: Iterable[np.ndarray]) -> None:
        for name, error in zip(_ERRORS, errors, strict=True):
            before = getattr(self, name)
            setattr(self, name, error if before is None else before + error)

    def _products(
        self, phi: Any, Y: Any, weights: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """G, B and s of a block in float64 on the host, and its targets less the offset."""
        residual = to_numpy(Y).astype(np.float64) - self.offset
        if is_csr(phi):
            left = phi if weights is None else phi.multiply(weights[:, None]).tocsr()
            return (left.T @ phi).toarray(), left.T @ residual, left.sum(axis=0), residual
        xp, device = compat.array_namespace(phi), compat.device(phi)
        # powers of two: targets and weights of any size are of size 1 in float32
        units, root = column_units(residual), np.ones(len(residual))
        right, scale = residual / units, 1.0
        if weights is not None:
            # the root on both sides: a product of a matrix with itself costs half
            w = to_numpy(weights).astype(np.float64)
            scale = float(column_units(w[:, None])[0])
            root = np.sqrt(w / scale)
            right = right * root[:, None]
            phi = phi * xp.asarray(root[:, None], dtype=phi.dtype, device=device)
        B = phi.T @ xp.asarray(right, dtype=phi.dtype, device=device)
        # means of features are differences of large sums: these alone are made in float64
        s = xp.zeros(int(phi.shape[1]), dtype=xp.float64, device=device)
        columns = xp.asarray(root, dtype=xp.float64, device=device)
        for part in slices(len(root), PART):
            s = s + columns[part] @ xp.astype(phi[part, :], xp.float64, copy=False)
        G, B = (to_numpy(x).astype(np.float64) * scale for x in (phi.T @ phi, B))
        return G, B * units, to_numpy(s) * scale, residual

    def merge(self, other: MomentSums) -> None:
        """Add the sums of other rows of the same features; without rows yet, the offset is theirs.

        Raises
        ------
        ValueError
            For another number of features or outputs.
        """
        if (self.size, self.outputs) != (other.size, other.outputs):
            raise ValueError(
                f"moments of {other.size} features and {other.outputs} outputs do not add to those of "
                f"{self.size} and {self.outputs}"
            )
        if not self.rows:
            self.offset = other.offset.copy()
        other = other.shifted(self.offset)
        for name in _SUMS:
            mine = getattr(self, name)
            mine += getattr(other, name)
        self.weight += other.weight
        self.rows += other.rows
        if other.audited:
            self._count_errors(getattr(other, name) for name in _ERRORS)
            self.audited += other.audited

    def subtract(self, other: MomentSums) -> None:
        """Take rows away that were added before; on an error nothing has changed.

        Raises
        ------
        ValueError
            For more rows or weight than there are, or if G or the squares of the targets would lose their
            definiteness: those rows were never added.

        Notes
        -----
        About 4/3 k^3 operations, to look at the smallest eigenvalue.
        """
        if other.rows > self.rows or other.weight > self.weight * (1 + 1e-12):
            raise ValueError(
                f"{other.rows:,} rows of weight {other.weight:g} cannot be taken from {self.rows:,} of "
                f"weight {self.weight:g}"
            )
        shifted = other.shifted(self.offset)
        gram, squares = self.gram - shifted.gram, self.target_squares - shifted.target_squares
        noise = 1e-6 if self.audited or other.audited else 1e-9
        lowest = float(np.linalg.eigvalsh((gram + gram.T) / 2)[0])
        scale = float(np.linalg.norm(self.gram, 2)) if lowest < 0 else 0.0
        if lowest < -noise * scale or (squares < -noise * self.target_squares).any():
            raise ValueError(
                "these rows were never added: without them the moments would not be those of any rows"
            )
        for name in _SUMS:
            mine = getattr(self, name)
            mine -= getattr(shifted, name)
        self.target_squares = np.maximum(self.target_squares, 0.0)
        self.weight, self.rows = max(self.weight - other.weight, 0.0), self.rows - other.rows

    def shifted(self, offset: np.ndarray) -> MomentSums:
        """The same sums with another offset; itself where it is the same."""
        if np.array_equal(offset, self.offset):
            return self
        step = self.offset - offset  # y - offset = (y - y0) + step
        with np.errstate(over="ignore", invalid="ignore"):
            squares = self.target_squares + step * (2 * self.target_sum + self.weight * step)
        cross_error = self.cross_error
        if cross_error is not None and self.sum_error is not None:
            cross_error = cross_error + np.outer(self.sum_error, step)
        return MomentSums(
            offset=np.array(offset, dtype=np.float64),
            gram=self.gram,
            cross=self.cross + np.outer(self.feature_sum, step),
            feature_sum=self.feature_sum,
            target_sum=self.target_sum + self.weight * step,
            target_squares=squares,
            weight=self.weight,
            rows=self.rows,
            audited=self.audited,
            gram_error=self.gram_error,
            cross_error=cross_error,
            sum_error=self.sum_error,
            square_error=self.square_error,
        )

    def around(self, feature_mean: np.ndarray, target_mean: np.ndarray) -> MomentSums:
        """The sums of phi - feature_mean (k,) and of targets less target_mean (c,), means of any rows.

        Of float64 features alone: errors that were audited are dropped.
        """
        own, m = self.shifted(target_mean), feature_mean
        s, W = self.feature_sum, self.weight
        mixed = np.outer(s, m)
        return replace(
            own,
            offset=np.zeros(self.outputs),
            gram=self.gram - mixed - mixed.T + W * np.outer(m, m),
            cross=own.cross - np.outer(m, own.target_sum),
            feature_sum=s - W * m,
            audited=0,
            gram_error=None,
            cross_error=None,
            sum_error=None,
            square_error=None,
        )

    def turned(self, columns: np.ndarray) -> MomentSums:
        """The sums of phi(x)' columns (k, r) in the place of phi(x); 2 k^2 r multiplications and less."""

        def turn(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else columns.T @ array

        def turn_twice(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else columns.T @ array @ columns

        return replace(
            self,
            gram=columns.T @ self.gram @ columns,
            cross=columns.T @ self.cross,
            feature_sum=columns.T @ self.feature_sum,
            gram_error=turn_twice(self.gram_error),
            cross_error=turn(self.cross_error),
            sum_error=turn(self.sum_error),
            square_error=turn_twice(self.square_error),
        )

    def centred(self, *, intercept: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """G (k, k), B (k, c) and q (c,) of what ridge works on.

        With an intercept those of features and targets less their means, without those of the
        targets as they are.
        """
        if not intercept:
            plain = self.shifted(np.zeros(self.outputs))
            return plain.gram, plain.cross, plain.target_squares
        s, t = self.feature_sum, self.target_sum / self.weight
        G = self.gram - np.outer(s, s / self.weight)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.maximum(self.target_squares - self.weight * t * t, 0.0)
        return G, self.cross - np.outer(s, t), squares

    def centred_errors(
        self, *, intercept: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """dG, dB and E'E of all rows, to the sums of :meth:`centred`; None where no row was audited.

        What float32 made of the audited rows is taken for all alike.
        """
        own = self if intercept else self.shifted(np.zeros(self.outputs))
        dG, dB, ds, squares = (getattr(own, name) for name in _ERRORS)
        if dG is None:
            return None
        scale = max(self.rows / self.audited, 1.0)  # rows may have been taken away
        dG, dB, ds, squares = (scale * part for part in (dG, dB, ds, squares))
        if intercept:  # of s s' / W and s t' / W
            s, t = self.feature_sum, self.target_sum
            dG = dG - (np.outer(s, ds) + np.outer(ds, s) - np.outer(ds, ds)) / self.weight
            dB = dB - np.outer(ds, t) / self.weight
        return dG, dB, squares

    def with_errors(self, audited: int) -> MomentSums:
        """The same, with errors of 0 where no row of its own was audited but some of others were."""
        if self.audited or not audited:
            return self
        k, c = self.size, self.outputs
        found = replace(self, audited=audited)
        found._count_errors(np.zeros(shape) for shape in ((k, k), (k, c), (k,), (k, k)))
        return found

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Arrays and numbers that :meth:`restored` makes the same sums of."""
        names = (*_SUMS, "offset", *(_ERRORS if self.audited else ()))
        arrays = {name: getattr(self, name) for name in names}
        return arrays, {"rows": self.rows, "weight": self.weight, "audited": self.audited}

    @classmethod
    def restored(
        cls, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], k: int, c: int
    ) -> MomentSums:
        """Sums out of a file.

        Raises
        ------
        KeyError, TypeError, ValueError
            For arrays of other shapes or kinds, and for what is missing.
        """
        rows, audited = (integer(name, numbers[name], 0) for name in ("rows", "audited"))
        names = (*_SUMS, "offset", *(_ERRORS if audited else ()))
        square = (k, k)
        shapes = {
            "gram": square,
            "cross": (k, c),
            "feature_sum": (k,),
            "sum": (k,),
            "square": square,
        }
        for name in names:
            shape = shapes.get(name.removesuffix("_error"), (c,))
            if arrays[name].shape != shape or arrays[name].dtype != np.float64:
                raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} holds NaN or infinity")
        weight = positive("weight", numbers["weight"], zero=True)
        if weight and not rows:
            raise ValueError(f"a weight of {weight:g} without rows")
        own = {name: arrays[name].copy() for name in names}
        return cls(**own, weight=weight, rows=rows, audited=audited)

    @property
    def feature_mean(self) -> np.ndarray:
        """Of the features, (k,)."""
        return self.feature_sum / self.weight

    @property
    def target_mean(self) -> np.ndarray:
        """Of the targets as they are, (c,)."""
        return self.offset + self.target_sum / self.weight
