"""Derivatives of kernel values by the new rows, summed over the others: by torch, in float64.

For new rows x_i, others x_j, coefficients W and factors F of pairs,

    D_ir = sum_j F_ij W_jr d kappa(x_i, x_j) / d x_i,        (b, r, d).

Of a profile phi of a statistic s_ij it is two products, with F phi'(s) (b, n) as a matrix:

    2 v_i (F phi' W)_ir - 2 (F phi' [W_jr v_j])_ir    for s = |v - v'|^2,
    (F phi' [W_jr v_j])_ir                            for s = v . v',

and of a sum over coordinates of a term one product for each coordinate, with the slopes of its terms.

No array (b, n, d) is made. What a kernel makes of x before it takes a statistic, the coordinates v and the
squared length p, is differentiated by torch.

**Kinks.** Where two rows meet, |x - x'| has slopes to all sides whose mean is 0, and 0 is what such a pair
adds; so does a coordinate of a Laplacian kernel that two rows share, and the angles 0 and pi. A row of
zeros where a kernel of angles jumps, or has a kink whose slopes have no such mean, is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sdgpu.backend.arrays import slices
from sdgpu.kernels.augmented_rows import BLOCK, Rows, near_pairs
from sdgpu.kernels.coordinate_sums import TERM_SLOPES

__all__ = [
    "by_autograd",
    "coordinates_of",
    "profile_slopes",
    "pulled_back",
    "recording",
    "require_finite",
    "statistic_slopes",
]

ENTRIES = (
    2**17
)  # of a tile of slopes, and of columns that it multiplies: 1 MiB; NTK keeps forty such tiles


@contextmanager
def recording() -> Iterator[None]:
    """Record what is computed, whatever the caller has switched off."""
    import torch

    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        # extremes are looked at on the way, which torch takes for a mistake
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        yield


def pulled_back(
    function: Callable[[Any], Any], X: Any, cotangents: Callable[[int, Any], list[Any]], count: int
) -> Any:
    """Products of d f_l(x) / d x with `count` cotangents, (b, count, d).

    Parameters
    ----------
    function : callable
        Tensor (b, d) to tensors that depend on it row by row.
    X : tensor (b, d)
    cotangents : callable
        (r, tensors) to the r-th cotangent of each tensor.
    count : int

    Raises
    ------
    ValueError
        If the function leaves torch on the way, or has no derivative.
    """
    import torch

    with recording():
        x = X.clone().requires_grad_()
        values = function(x)
        if not any(value.requires_grad for value in values):
            raise ValueError(
                "it leaves torch on the way (detach, numpy, float): write it with operations of torch"
            )
        kept = [number for number, value in enumerate(values) if value.requires_grad]
        parts = []
        for r in range(count):
            found = cotangents(r, values)
            gradient = torch.autograd.grad(
                [values[number] for number in kept],
                x,
                [found[number] for number in kept],
                retain_graph=r + 1 < count,
            )
            parts.append(gradient[0])
        return torch.stack(parts, dim=1) if parts else x.new_zeros(len(x), 0, x.shape[1]).detach()


def by_autograd(tile: Callable[[Any], Any], name: str, X: Any, weights: tuple[Any, Any]) -> Any:
    """D (b, r, d) of values (b, n) that torch follows, and `weights` F (or None) and W: r passes back.

    Raises
    ------
    ValueError
        For values that torch cannot follow, or a derivative that is not finite; names `name`.
    """
    factor, W = weights

    def values(x: Any) -> tuple[Any]:
        return (tile(x),)

    def cotangents(r: int, values: Any) -> list[Any]:
        column = W[:, r].expand_as(values[0])
        return [column if factor is None else factor * column]

    try:
        gradient = pulled_back(values, X, cotangents, int(W.shape[1]))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} has no derivative: {error}") from error
    return require_finite(gradient, name)


def require_finite(gradient: Any, name: str) -> Any:
    """The gradient itself.

    Raises
    ------
    ValueError
        If it is not finite: names the first row.
    """
    import torch

    rows = torch.isfinite(gradient).flatten(1).all(dim=1)
    if not bool(rows.all()):
        row = int(torch.nonzero(~rows)[0, 0])
        raise ValueError(
            f"{name} has no derivative at row {row} of the new rows: there is a kink or a jump "
            "there, or it overflows"
        )
    return gradient


def profile_slopes(
    profile: Callable[[Any, Any, Any], Any], tile: Any, a_norms: Any, b_norms: Any
) -> tuple[Any, Any]:
    """d profile / d statistic and d profile / d |x|^2 (or None), each (a, b), by torch.

    A profile is elementwise, so a pass with the tangent 1 is its derivative, and may work in place.
    """
    lengths = None if a_norms is None else a_norms.expand(tile.shape)

    def slope(number: int) -> Any:
        import torch
        from torch.autograd import forward_ad

        with recording(), forward_ad.dual_level():
            t, p = tile.clone(), None if lengths is None else lengths.clone()
            if number == 0:
                t = forward_ad.make_dual(t, torch.ones_like(t))
            else:
                p = forward_ad.make_dual(p, torch.ones_like(t))
            tangent = forward_ad.unpack_dual(profile(t, p, b_norms)).tangent
            return tile.new_zeros(tile.shape) if tangent is None else tangent

    return slope(0), None if lengths is None else slope(1)


def statistic_slopes(kernel: Any, a: Rows, rows: Rows, factor: Any, W: Any) -> tuple[Any, Any]:
    """Cotangents of coordinates (b, r, e) and of squared lengths (b, r) or None, for a profile.

    Parameters
    ----------
    kernel : Profile
    a, rows : Rows
        Of b new and of n other rows.
    factor : tensor (b, n) or None
    W : tensor (n, r)

    Notes
    -----
    b n (e + 1) r multiplications, in tiles.
    """
    v, height = coordinates_of(kernel, a), max(len(a), 1)
    total = v.new_zeros(len(a), int(W.shape[1]), int(v.shape[1]))
    lengths = None
    for part in slices(len(rows), max(1, ENTRIES // height)):
        b = rows[part]
        tile = kernel.statistics(a, b)
        near = None
        if kernel.exact_near or a.far or b.far:
            near = near_pairs(tile, a, b, kernel.sign)
        if kernel.exact_opposite:  # marked
            near = tile < 0 if near is None else near | (tile < 0)
        opposite = tile < 0 if kernel.exact_opposite else None
        norms = (None, None) if a.norms is None else (a.norms[:, None], b.norms[None, :])
        slopes, by_length = kernel.slopes(tile, *norms)
        if factor is not None:
            slopes = slopes * factor[:, part]
            by_length = None if by_length is None else by_length * factor[:, part]
        if by_length is not None:
            lengths = by_length @ W[part] + (0.0 if lengths is None else lengths)
        if near is not None and bool(near.any()):
            _add_pairs(
                kernel, total, (v, coordinates_of(kernel, b)), (slopes, near, opposite), W[part]
            )
            slopes = slopes.masked_fill(near, 0.0)
        _add_products(kernel, total, (v, coordinates_of(kernel, b)), slopes, W[part])
    return total, lengths


def coordinates_of(kernel: Any, rows: Rows) -> Any:
    """What the statistic is taken of, (n, e), from ready rows."""
    if kernel.statistic == "product" and kernel.distance:
        return rows.right[:, :-2]
    return rows.left


def _add_products(kernel: Any, total: Any, v: tuple[Any, Any], slopes: Any, W: Any) -> None:
    """Add the sums over one tile, by products."""
    (left, right), width = v, max(1, int(v[1].shape[1]))
    if kernel.statistic in TERM_SLOPES:
        slope = TERM_SLOPES[kernel.statistic]
        for k in range(int(left.shape[1])):
            total[:, :, k] += (slopes * slope(left[:, k, None], right[None, :, k])) @ W
        return
    if kernel.distance:
        total += 2 * kernel.sign * left[:, None, :] * (slopes @ W)[:, :, None]
    for part in slices(int(W.shape[1]), max(1, ENTRIES // (width * max(len(right), 1)))):
        columns = (W[:, part, None] * right[:, None, :]).flatten(1)
        product = (slopes @ columns).reshape(len(left), -1, width)
        total[:, part] += -2 * kernel.sign * product if kernel.distance else product


def _add_pairs(
    kernel: Any, total: Any, v: tuple[Any, Any], tiles: tuple[Any, Any, Any], W: Any
) -> None:
    """Add near pairs one by one, from differences, which the products would lose in rounding.

    Of opposite unit rows the slope is that of the sum: what lies along a unit row changes no direction.
    """
    import torch

    (left, right), (slopes, near, opposite) = v, tiles
    pairs = torch.nonzero(near)
    numbers = max(1, int(left.shape[1]) * int(W.shape[1]))
    for part in slices(len(pairs), max(1, BLOCK // numbers)):
        i, j = pairs[part, 0], pairs[part, 1]
        difference = left[i] - right[j]
        if opposite is not None:
            across = opposite[i, j][:, None]
            difference = torch.where(across, -left[i] - right[j], difference)
        scaled = (2 * kernel.sign * slopes[i, j])[:, None] * difference
        total.index_add_(0, i, W[j][:, :, None] * scaled[:, None, :])
