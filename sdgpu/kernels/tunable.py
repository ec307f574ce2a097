"""The numbers of a kernel that can be learned, and the derivative of a sum over K by each of them.

Of a loss L with the derivative G by the kernel matrix, dL = sum_ij G_ij d kappa(x_i, x'_j), these modules
give dL by the logarithm of every parameter, a block of rows at a time: no matrix of derivatives is made.

- A length scale divides a column of the rows, so its derivative is that by the rows themselves
  (:mod:`sdgpu.kernels.derivatives`): dL / d log l_k = - sum_i x_ik dL / dx_ik, both rows of a pair counted.
- The factor of a scaled kernel: the sum of G kappa.
- Any other positive number, gamma, a power, a period: central differences of fourth order of log theta, of
  values that are analytic in it, to some 1e-9 of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from sdgpu.kernels.columns import On
from sdgpu.kernels.kernel import Kernel, Product, Profile, Scaled, Sum

__all__ = ["Parameter", "Tunable"]

ENTRIES = 2**20  # of a block of K
STEP = 1e-3  # of the logarithm of a parameter, in differences
#: Numbers of which only some have a closed form.
DISCRETE = ("nu",)


@dataclass(frozen=True)
class Parameter:
    """One or several positive numbers of a part of a kernel.

    Attributes
    ----------
    part : int
        Number of the part, in the order in which a kernel is walked through.
    name : str
        Of the field: "lengthscale", "gamma", "scale", ..; "width" is one factor of all length scales.
    start : tuple of float
        Its numbers, one for each feature of a length scale.
    """

    part: int
    name: str
    start: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        """A name for each number."""
        own = f"{self.name}" if self.part == 0 else f"{self.name} of part {self.part}"
        return [own] if len(self.start) == 1 else [f"{own}[{k}]" for k in range(len(self.start))]


class Tunable:
    """A kernel as a function of the logarithms of some of its parameters.

    Parameters
    ----------
    kernel : Kernel
    d : int
        Features of the rows.
    over : sequence of str
        Names of fields: "lengthscale" is one for each feature, "width" one for all of them together,
        "scale" the factors of scaled kernels, the weights of sums.

    Attributes
    ----------
    parameters : list of Parameter
    labels : list of str
        Of all numbers, in the order of the vectors of logarithms.
    start : array (P,)
        Logarithms of the numbers that the kernel has.

    Raises
    ------
    ValueError
        For a name that no part has: names those there are; for a number that is 0.
    """

    def __init__(self, kernel: Kernel, d: int, over: Sequence[str]) -> None:
        self.kernel, self.d = kernel, d
        found: list[Parameter] = []
        names: set[str] = set()
        _walk(
            kernel, d, lambda part, node, width: _collect(part, node, width, over, (found, names))
        )
        missing = [name for name in over if name not in {one.name for one in found}]
        if missing or not over:
            raise ValueError(
                f"over={tuple(over)!r}: {kernel!r} has no {', '.join(missing) or 'name'} to learn; it has "
                f"{', '.join(sorted(names)) or 'nothing'}"
            )
        self.parameters = found
        self.labels = [label for one in found for label in one.labels]
        self.start = np.log([number for one in found for number in one.start])

    def at(self, logs: np.ndarray) -> Kernel:
        """The kernel with other numbers, given by their logarithms (P,)."""
        values = self._values(logs)
        return _rebuilt(self.kernel, self.d, _Counter(), values)

    def _values(self, logs: np.ndarray) -> dict[tuple[int, str], tuple[float, ...]]:
        values, first = {}, 0
        for one in self.parameters:
            size = len(one.start)
            numbers = np.exp(np.asarray(logs[first : first + size], dtype=np.float64))
            values[one.part, one.name] = tuple(float(number) for number in numbers)
            first += size
        return values

    def slopes(
        self, logs: np.ndarray, rows: tuple[Any, Any], factor: Callable[[slice], Any], *, same: bool
    ) -> np.ndarray:
        """sum_ij G_ij d kappa(a_i, b_j) / d log theta, (P,).

        Parameters
        ----------
        logs : array (P,)
        rows : pair of tensors (m, d) and (n, d)
            Of torch, in float64: A and B.
        factor : callable
            Rows of A, as a slice, to G of these (b, n).
        same : bool
            Whether B is A and G is symmetric: then one of the two derivatives by rows is enough.

        Notes
        -----
        m n values for each part, a product of d columns for length scales, and four values more for every
        other number; memory of a few blocks.
        """
        A, B = rows
        centre = B.mean(dim=0)
        totals: dict[tuple[int, str], np.ndarray] = {}
        kernel, height = self.at(logs), max(1, ENTRIES // max(int(B.shape[0]), 1))
        wanted = {(one.part, one.name) for one in self.parameters}
        for first in range(0, int(A.shape[0]), height):
            part = slice(first, min(first + height, int(A.shape[0])))
            block = _SeenRows(A[part], B, centre, same, wanted, totals)
            _contract(kernel, block, factor(part), _Counter())
        return np.concatenate([totals[one.part, one.name] for one in self.parameters])


class _Counter:
    """Numbers the parts of a kernel as it is walked through."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> int:
        """The number of this part."""
        self.count += 1
        return self.count - 1


def _parts(kernel: Kernel) -> tuple[Kernel, ...]:
    """Kernels within a kernel."""
    if isinstance(kernel, (Sum, Product)):
        return kernel.kernels
    return (kernel.kernel,) if isinstance(kernel, (Scaled, On)) else ()


def _walk(kernel: Kernel, d: int, visit: Callable[[int, Kernel, int], None]) -> None:
    counter = _Counter()

    def go(node: Kernel, width: int) -> None:
        visit(counter.next(), node, width)
        inner = len(node.indices) if isinstance(node, On) else width
        for part in _parts(node):
            go(part, inner)

    go(kernel, d)


def _collect(part: int, node: Kernel, width: int, over: Sequence[str], found: Any) -> None:
    parameters, names = found
    if not is_dataclass(node) or isinstance(node, (Sum, Product, On)):
        return
    for one in fields(node):
        value = getattr(node, one.name)
        if one.name in DISCRETE or isinstance(value, (bool, int, str, Kernel)):
            continue
        if one.name == "lengthscale":
            names |= {"lengthscale", "width"}
            numbers = np.ones(width) if value is None else np.broadcast_to(value, (width,))
            if "lengthscale" in over:
                parameters.append(Parameter(part, "lengthscale", tuple(map(float, numbers))))
            elif "width" in over:
                parameters.append(Parameter(part, "width", (1.0,)))
            continue
        if not isinstance(value, (float, tuple)):
            continue
        names.add(one.name)
        if one.name in over:
            numbers = np.ravel(np.asarray(value, dtype=np.float64))
            if not (numbers > 0).all():
                raise ValueError(
                    f"{one.name}={value!r} of {type(node).__name__} is learned by its logarithm: start "
                    "from numbers > 0"
                )
            parameters.append(Parameter(part, one.name, tuple(map(float, numbers))))


def _rebuilt(
    node: Kernel, d: int, counter: _Counter, values: dict[tuple[int, str], tuple[float, ...]]
) -> Any:
    part = counter.next()
    if isinstance(node, (Sum, Product)):
        return replace(
            node, kernels=tuple(_rebuilt(one, d, counter, values) for one in node.kernels)
        )
    if isinstance(node, On):
        return replace(node, kernel=_rebuilt(node.kernel, len(node.indices), counter, values))
    changed: dict[str, Any] = {}
    for (number, name), numbers in values.items():
        if number != part:
            continue
        if name == "width":
            before = getattr(node, "lengthscale")  # noqa: B009 - not every kernel has it
            scales = np.ones(1) if before is None else np.atleast_1d(before)
            scaled = tuple(float(one) * numbers[0] for one in scales)
            changed["lengthscale"] = scaled if len(scaled) > 1 else scaled[0]
        elif name == "lengthscale":
            changed["lengthscale"] = numbers
        else:
            changed[name] = _shaped(getattr(node, name), numbers)
    if isinstance(node, Scaled):
        changed["kernel"] = _rebuilt(node.kernel, d, counter, values)
    return _replaced(node, **changed) if changed else node


def _replaced(node: Any, **changed: Any) -> Any:
    """A kernel with other values of some fields."""
    return replace(node, **changed)


def _shaped(like: Any, numbers: Sequence[float]) -> Any:
    """Numbers nested as a parameter was: one, several, or a table of them."""
    if isinstance(like, float):
        return float(numbers[0])
    shape = np.asarray(like, dtype=np.float64).shape
    return np.asarray(numbers).reshape(shape).tolist()


@dataclass(frozen=True, eq=False)
class _SeenRows:
    """Rows of A with all of B, as one part of a kernel sees them, and the sums so far."""

    a: Any
    b: Any
    centre: Any
    same: bool
    wanted: set[tuple[int, str]]
    totals: dict[tuple[int, str], Any]

    def chosen(self, node: On) -> _SeenRows:
        """The columns that a part sees."""
        a, b, centre = map(node.chosen, (self.a, self.b, self.centre))
        return replace(self, a=a, b=b, centre=centre)

    def values(self, node: Kernel) -> Any:
        """Kernel values (b, n)."""
        return node.tile(node.rows(self.a, self.centre), node.rows(self.b, self.centre))

    def add(self, key: tuple[int, str], terms: Any) -> None:
        """Add to the derivative of a parameter."""
        self.totals[key] = self.totals.get(key, 0.0) + np.atleast_1d(
            np.asarray(terms, dtype=np.float64)
        )


def _contract(node: Kernel, block: _SeenRows, factor: Any, counter: _Counter) -> None:
    """Add the derivatives of every parameter of a kernel, of which each value counts `factor` (b, n)."""
    part = counter.next()
    if isinstance(node, Sum):
        for one in node.kernels:
            _contract(one, block, factor, counter)
    elif isinstance(node, Product):
        values = [block.values(one) for one in node.kernels]
        for k, one in enumerate(node.kernels):
            others = factor
            for j, value in enumerate(values):
                others = others * value if j != k else others
            _contract(one, block, others, counter)
    elif isinstance(node, Scaled):
        if (part, "scale") in block.wanted:
            block.add((part, "scale"), float((factor * block.values(node)).sum()))
        _contract(node.kernel, block, factor * node.scale, counter)
    elif isinstance(node, On):
        _contract(node.kernel, block.chosen(node), factor, counter)
    else:
        for number, name in block.wanted:
            if number == part:
                _of_part(node, block, factor, (part, name))


def _of_part(node: Kernel, block: _SeenRows, factor: Any, key: tuple[int, str]) -> None:
    name = key[1]
    if name in ("lengthscale", "width") and getattr(node, "divides_rows", True):
        by_row = _by_rows(node, block, factor)
        block.add(key, by_row.sum().item() if name == "width" else by_row.tolist())
        return
    field = "lengthscale" if name == "width" else name
    before = np.asarray(getattr(node, field), dtype=np.float64)
    flat = before.ravel()
    directions = [np.ones(flat.size)] if name == "width" else list(np.eye(flat.size))
    slopes = []
    for direction in directions:

        def total(step: float, direction: np.ndarray = direction) -> float:
            moved = _shaped(getattr(node, field), (flat * np.exp(step * direction)).tolist())
            return float((factor * block.values(_replaced(node, **{field: moved}))).sum())

        near, far = total(STEP) - total(-STEP), total(2 * STEP) - total(-2 * STEP)
        slopes.append((8 * near - far) / (12 * STEP))
    block.add(key, slopes)


def _by_rows(node: Kernel, block: _SeenRows, factor: Any) -> Any:
    """- sum_ij G_ij (x_k d / dx_k + x'_k d / dx'_k) kappa(x_i, x'_j), (d,)."""
    a, b, centre = block.a, block.b, block.centre
    origin = _origin(node, a, centre)
    ones = b.new_ones(len(b), 1)
    of_a = node.gradient(a, centre, node.rows(b, centre), ones, factor=factor)[:, 0, :]
    total = ((a - origin) * of_a).sum(dim=0)
    if block.same:
        return -2 * total
    ones = a.new_ones(len(a), 1)
    of_b = node.gradient(b, centre, node.rows(a, centre), ones, factor=factor.T)[:, 0, :]
    return -(total + ((b - origin) * of_b).sum(dim=0))


def _origin(node: Kernel, a: Any, centre: Any) -> Any:
    """From where rows are measured: the centre where only differences count, so no digits are lost."""
    if not isinstance(node, Profile):
        return 0.0
    here, there = (node.coordinates(a[:1], at)[0] for at in (centre, centre + 1.0))
    return 0.0 if bool((here == there).all()) else centre
