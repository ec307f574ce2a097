"""Products with a kernel matrix as one fused kernel on CUDA, by Triton.

A program holds a block of rows and runs over all others; the kernel values live in registers and are never
written, so memory is O(n (d + c)). The formula is that of the kernel: its profile is run once on symbols
that write a Triton function (:mod:`sdgpu.operators.device_source`), so every kernel with a profile has a
fused product, sums and products of kernels and a user's own too. Sums over features that are products run
on tensor cores in split TF32: three products of halves, with 22 of float32's 24 bits.

What bounds it, on paper, are tensor cores, instructions or what comes from the second-level cache, and for
few features and one column the powers: ``python -m benchmarks.roofline`` counts them for each variant.
**Not yet run on a GPU.**

All n^2 pairs are evaluated, not the symmetric half: the half would have to add into rows that belong to
other programs, with atomics, which cost more than they save, and sums that could not be compensated nor be
the same in two runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sdgpu.backend.checks import choice, integer
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.compiled.formula import Formula, formula_of
from sdgpu.operators import device_functions
from sdgpu.operators.device_rows import DeviceRows, packed_block, part_widths
from sdgpu.operators.device_source import StatisticLayout, layout_of, source_of

__all__ = [
    "SPLITS",
    "FusedCuda",
    "Shape",
    "constants_of",
    "formula_and_layout",
    "shape_of",
    "why_no_formula",
    "why_not",
]

#: How float32 is multiplied: three TF32 products on tensor cores, or fused multiply-adds.
SPLITS = ("tf32x3", "ieee")
#: Columns of a block that one pass over the pairs serves.
WIDEST = 32


def why_not(device: Any) -> str:
    """Why the fused kernel cannot run on `device`, as a sentence; empty if it can.

    Parameters
    ----------
    device : torch.device or str

    Returns
    -------
    str
        Triton is missing, or the device is not CUDA and TRITON_INTERPRET=1 was not set before the
        import of triton.
    """
    if not device_functions.installed():
        return "Triton is not installed: pip install triton (Linux only)"
    kind = str(device).partition(":")[0]
    if kind == "cuda" or device_functions.interpreted():
        return ""
    return (
        f"the fused kernel needs a CUDA device, not {str(device)!r}: move the data to CUDA, or set "
        "TRITON_INTERPRET=1 before Python starts to try it slowly on the CPU"
    )


def why_no_formula(kernel: Kernel, rows: Rows) -> str:
    """Why a kernel of ready rows has no fused product, as a sentence that names it; empty if it has one."""
    opaque = kernel.opaque
    if opaque is not None:
        return f"{type(opaque).__name__} has no formula"
    if _sample_is_wide(rows):
        return "the rows are float64, but kernel values are computed in float32"
    found = formula_of(kernel, rows)
    if found is None:
        return f"{type(kernel).__name__} has a statistic that is no sum over features known here"
    try:
        source_of(found[0], layout_of(found[0], part_widths(*found)))
    except (TypeError, AttributeError, NotImplementedError) as error:
        return f"{type(kernel).__name__} cannot be written as a Triton function: {error}"
    return ""


def _sample_is_wide(rows: Rows) -> bool:
    return str(rows.sample.dtype) != "torch.float32"


class FusedCuda:
    """Products with the kernel matrix of ready rows, and with those between new rows and them.

    Parameters
    ----------
    kernel : Kernel
        With a formula (:func:`why_no_formula`).
    rows : Rows
        Of torch in float32, as the kernel makes them ready.
    split : {"tf32x3", "ieee"}, default "tf32x3"
        "tf32x3" multiplies on tensor cores with about 22 of float32's 24 bits, "ieee" without them, in
        full float32, much slower and for few features (it spills registers): to compare.
    polynomial : int, default 0
        Of each eight powers 2^t so many are polynomials on the FMA units: 0, 1, 2, 4 or 8. Both ways are
        off by up to 2 units in the last place. On paper 0 is best on Hopper: instructions are scarce too.

    Raises
    ------
    ImportError
        If :func:`why_not` has a reason.
    TypeError
        For a kernel without a formula.
    ValueError
        For another option.

    Notes
    -----
    A product costs n^2 kernel values and 2 n^2 (d + c) multiplications, the values again for each 32
    columns. Copies with padding take 8 n d bytes (split), 4 n d more where a distance must be exact near 0
    or is a sum over coordinates, and 8 n c. Sums are float32 within a block of 32 to 128 rows and
    compensated between blocks: their error does not grow with n. Values below the smallest normal number
    are 0. The same product twice is the same to the last bit.
    """

    def __init__(
        self, kernel: Kernel, rows: Rows, *, split: str = "tf32x3", polynomial: int = 0
    ) -> None:
        choice("split", split, SPLITS)
        if integer("polynomial", polynomial, 0) not in (0, 1, 2, 4, 8):
            raise ValueError(
                f"polynomial={polynomial} must be 0, 1, 2, 4 or 8 of each eight powers"
            )
        reason = why_not(rows.sample.device)
        if reason:
            raise ImportError(reason)
        reason = why_no_formula(kernel, rows)
        if reason:
            raise TypeError(f"{reason}: use torch's tiles")
        self.kernel, self.rows = kernel, rows
        self.split, self.polynomial = split, int(polynomial)
        found = formula_of(kernel, rows)
        self._parts = found[1] if found else []
        self._packed: dict[tuple[StatisticLayout, str], DeviceRows] = {}

    def gram(self, V: Any) -> Any:
        """V K, (c, n) -> (c, n) float64: K is symmetric up to rounding, so this is (K V')' too.

        Values, evaluated in float32, are multiplied in the precision of V: in float64 that is "mixed" of
        :class:`~sdgpu.operators.TiledOperator`.

        Raises
        ------
        ValueError
            For another shape, dtype or device.
        """
        return self._product(self.rows, V, same=True)

    def cross(self, new: Rows, V: Any) -> Any:
        """V kappa(X, X_new), (c, n) -> (c, m) float64, for new ready rows: (kappa(X_new, X) V')'.

        Distances of a new row to the same row of X are 0 to rounding only. Few new rows meet the columns in
        parts, so that there are programs for a whole GPU. Precision and errors as :meth:`gram`.
        """
        if new.sample.device != self.rows.sample.device or _sample_is_wide(new):
            raise ValueError(
                f"new rows are {new.sample.dtype} on {new.sample.device}: pass float32 rows on "
                f"{self.rows.sample.device}"
            )
        return self._product(new, V, same=False)

    def _product(self, left: Rows, V: Any, *, same: bool) -> Any:
        import torch

        self._check_block(V)
        c, m = int(V.shape[0]), len(left)
        if m == 0 or c == 0 or len(self.rows) == 0:
            return torch.zeros((c, m), dtype=torch.float64, device=V.device)
        formula, layout = formula_and_layout(self.kernel, self.rows, left)
        wide = V.dtype == torch.float64
        shape = shape_of(formula, layout, c, wide=wide, architecture=_architecture(V.device))
        right = self._device_rows(formula, layout, self.rows, "right")
        if same and _alike(formula, self._parts):
            new = right
        else:
            new = self._device_rows(formula, layout, left, "left")
        constants = constants_of(shape, formula, layout, same=same, split=self.split, wide=wide)
        constants["POLYNOMIAL"] = self.polynomial
        halves = constants["BLOCK"] == "halves"
        block = packed_block(V, right.n, shape.columns, halves=halves)
        programs = new.n // shape.rows * len(block)
        chunk = -(-right.n // (shape.step * _chunks(programs, right.n // shape.step))) * shape.step
        chunks = -(-right.n // chunk)
        out = torch.empty(
            (chunks, len(block), shape.columns, new.n), dtype=torch.float64, device=V.device
        )
        grid = (new.n // shape.rows, len(block), chunks)
        with _current_device(V.device):
            device_functions.product_kernel[grid](
                new.rows,
                right.rows,
                new.columns,
                right.columns,
                block,
                out,
                new.n,
                right.n,
                chunk,
                **constants,
                num_warps=shape.warps,
                num_stages=shape.stages,
                enable_fp_fusion=True,
            )
        return out.sum(dim=0).view(-1, new.n)[:c, :m].contiguous()

    def _device_rows(
        self, formula: Formula, layout: StatisticLayout, rows: Rows, side: str
    ) -> DeviceRows:
        """The arrays of one side, kept for the rows that are always there."""
        key = (layout, side)
        if rows is self.rows and key in self._packed:
            return self._packed[key]
        found = formula_of(self.kernel, rows)
        assert found is not None
        halves = self.split == "tf32x3"
        made = DeviceRows(formula, layout, found[1], side, block=PADDED, halves=halves)
        if rows is self.rows:
            self._packed[key] = made
        return made

    def _check_block(self, V: Any) -> None:
        import torch

        if not isinstance(V, torch.Tensor):
            raise ValueError(f"V is a {type(V).__name__}: pass a torch.Tensor")
        if V.ndim != 2 or V.shape[1] != len(self.rows):
            raise ValueError(
                f"V has shape {tuple(V.shape)}: pass (c, {len(self.rows)}), a column for each row"
            )
        if V.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"V is {V.dtype}: convert it with .to(torch.float32)")
        if V.device != self.rows.sample.device:
            raise ValueError(
                f"V is on {V.device}, the rows on {self.rows.sample.device}: move one of them"
            )


def formula_and_layout(kernel: Kernel, rows: Rows, other: Rows) -> tuple[Formula, StatisticLayout]:
    """Of ready rows of both sides: where one side is far from the centre near pairs need care."""
    found, beside = formula_of(kernel, rows), formula_of(kernel, other)
    assert found is not None  # whoever calls it has asked
    assert beside is not None
    formula = found[0].with_care_of(beside[0])
    return formula, layout_of(formula, part_widths(formula, found[1]))


def _alike(formula: Formula, parts: list[Rows]) -> bool:
    """Whether rows are the same array as left factors and as right ones."""
    return all(
        own.left is own.right or (part.profile.statistic == "product" and part.profile.distance)
        for part, own in zip(formula.parts, parts, strict=True)
    )


def _chunks(programs: int, steps: int) -> int:
    """Into how many parts a pass over the columns is cut, so that few rows have many programs too."""
    return max(1, min(ENOUGH // max(programs, 1), steps // 8))


#: Programs beyond which the multiprocessors of a large GPU are busy: four for each of 132.
ENOUGH = 528
#: Rows are padded to a multiple of this: of every shape's rows and steps.
PADDED = 128


#: Lines of a formula up to which large blocks are possible, and beyond which blocks are small.
SHORT, LONG = 48, 110


class Shape(NamedTuple):
    """Sizes of a program: its rows, those of a step, columns of the block, warps, stages of loads."""

    rows: int
    step: int
    columns: int
    warps: int
    stages: int


def shape_of(
    formula: Formula, layout: StatisticLayout, c: int, *, wide: bool = False, architecture: int = 90
) -> Shape:
    """The shape for a formula, c columns, `wide` in float64, and an architecture (90 is sm_90, Hopper).

    Chosen by what the compiler says for sm_80, sm_90 and sm_100, not by time: no registers are spilled, two
    programs fit a multiprocessor where they can, and there are few instructions for a pair of rows.
    """
    columns = 1 if c == 1 else 16 if c <= 16 else 32
    warps, text, features = 4, source_of(formula, layout), layout.features
    lines, careful = text.count("\n"), "any_of" in text
    if lines > LONG:
        rows, step = 64, 32
    elif not features:  # sums on the FMA units: what is loaded serves many pairs
        # one column is padded: sums between threads cost more than tensor cores, that have nothing to do
        columns = 16 if columns == 1 and not wide and architecture < 100 else columns
        rows, step = (128, 64) if columns == 1 else (64, 128)
        if wide or (columns == 32 and architecture < 90):
            rows, step = 64, 64
    elif len(formula.parts) > 1 or careful or wide:
        rows, step = 64, 64
    elif columns == 1:
        rows, step = (64, 64) if 32 < features <= 64 else (64, 128)
    else:
        rows, step = (64, 128) if features <= 16 and lines <= SHORT else (64, 64)
    if features and not 90 <= architecture < 100:
        # Hopper multiplies from shared memory, Ampere from registers, Blackwell into memory of its own
        small = careful if architecture == 100 else features > 32
        step = 32 if small else min(step, 64)
    elif (
        features
        and len(formula.parts) == 1
        and not wide
        and lines <= LONG
        and features + columns > 17
    ):
        # what a step loads from the second-level cache serves all rows: twice as many need half of it
        rows, warps = 128, 8
    return Shape(rows, step, columns, warps, stages=2)


def constants_of(
    shape: Shape, formula: Formula, layout: StatisticLayout, *, same: bool, split: str, wide: bool
) -> dict[str, Any]:
    """What the program is compiled for, without the share of polynomials."""
    halves = split == "tf32x3" and not wide and shape.columns > 1
    return {
        "VALUES": device_functions.values_function(source_of(formula, layout)),
        "ROWS": shape.rows,
        "STEP": shape.step,
        "COLS": shape.columns,
        "SAME": same,
        "SPLIT": split,
        "BLOCK": "halves" if halves else "whole",
    }


def _architecture(device: Any) -> int:
    """90 for sm_90; what is interpreted is as there."""
    import torch

    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _current_device(device: Any) -> Any:
    """Context in which `device` is current: Triton launches on the current one."""
    import contextlib

    import torch

    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
