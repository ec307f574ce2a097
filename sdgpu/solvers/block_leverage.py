"""Leave-one-out of a feature model, a block of rows at a time.

In the basis of all eigenvectors of the smoother row i of the features is U_i = phi_i V diag(delta)^-1/2, so
(H^q Y)_i = U_i a^q Z and (H^q)_ii = sum_j U_ij^2 a_j^q: what :mod:`sdgpu.distill.leave_one_out` needs of a
row, it has from the row and k numbers. An intercept is one eigenvector more, of equal entries, with a
shrinkage of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.distill.filters import flat_product
from sdgpu.distill.leave_one_out import leave_one_out
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["BlockLeverage", "to_eigenvectors"]

NOISE = 1e-8  # by which the squares of a row of orthonormal vectors may be beyond 1 in float64


@dataclass(frozen=True, eq=False)
class BlockLeverage:
    """What a block of rows says of the fits without each of them.

    Attributes
    ----------
    spectrum : Spectrum
        Of the feature model.
    rows : array (b, k)
        U.
    targets : array (b, c)
    constant : array (b,)
        The part of H_ii that an intercept has, at every power.
    """

    spectrum: Spectrum
    rows: Any
    targets: Any
    constant: Any

    @classmethod
    def of(cls, solution: Any, U: Any, Y: Any) -> BlockLeverage:
        """Of a :class:`~sdgpu.solvers.feature_solution.FeatureSolution`, from rows of U and targets.

        Both less their means with an intercept; U is phi times :func:`to_eigenvectors`.
        """
        share = 1 / solution.rows if solution.intercept else 0.0
        return cls(solution.spectrum, U, Y, share + 0 * Y[:, 0])

    @cached_property
    def squares(self) -> Any:
        """U_ij^2."""
        return self.rows * self.rows

    def steps(self, lams: np.ndarray, steps: int) -> Any:
        """Leave-one-out predictions of u_1 .. u_T at the rows, (L, T, b, c).

        Raises
        ------
        ValueError
            If a row determines itself.

        Notes
        -----
        2 b k L T (c + 1) multiplications.
        """
        spectrum, xp = self.spectrum, compat.array_namespace(self.rows)
        delta, squares = spectrum.eigenvalues, self.squares
        lam = xp.asarray(lams, dtype=delta.dtype, device=compat.device(delta))[:, None]
        a = delta / (delta + lam)  # (L, k)
        powers = [a]
        for _ in range(steps - 1):
            powers.append(powers[-1] * a)
        filters = xp.stack(powers, axis=1)[..., None]  # (L, T, k, 1)
        fitted = flat_product(self.rows, filters * spectrum.Z)
        diagonal = flat_product(squares, filters) + self.constant[:, None]
        outside = 1 - xp.sum(squares, axis=1) - self.constant
        # 0 to rounding; of float32 features eigenvectors below their rounding may add up to more than 1
        outside = xp.where(outside < -NOISE, outside, xp.clip(outside, 0.0, None))
        rest = flat_product(squares, (lam / (delta + lam))[..., None])[..., 0] + outside
        lowest = float(xp.min(rest))
        if not lowest > 1e-14:
            row = int(xp.argmin(rest)) % int(squares.shape[0])
            raise ValueError(
                f"row {row} of a block determines itself (leverage 1): without it nothing is known of it; "
                "raise lam or remove the row"
            )
        truth = xp.broadcast_to(self.targets, (len(lams), 1, *self.targets.shape))
        fitted = xp.concat([truth, fitted], axis=1)
        diagonal = xp.concat([xp.ones_like(diagonal[:, :1, ...]), diagonal], axis=1)
        return leave_one_out(fitted, diagonal, rest[..., None])


def to_eigenvectors(spectrum: Spectrum) -> Any:
    """V diag(delta)^-1/2 (k, k): features times it are rows of the eigenvectors; 0 where delta is."""
    delta = spectrum.eigenvalues
    xp = compat.array_namespace(delta)
    ones = xp.ones_like(delta)
    return spectrum.basis * xp.where(delta > 0, ones / xp.where(delta > 0, delta, ones), 0 * ones)
