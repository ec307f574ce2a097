"""The kernel matrix as a KeOps reduction: the only module that imports pykeops (extra ``keops``).

Every kernel with a formula works: the profile that tiles use runs on KeOps' lazy tensors too. KeOps
compiles each formula at first use; :func:`why_not` tries a tiny one in a process of its own, with a
time limit, so that a machine without a compiler says so and goes on.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sdgpu.backend.rates import Rates
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.coordinate_sums import TERMS
from sdgpu.kernels.kernel import Profile
from sdgpu.operators.cross import Cross
from sdgpu.operators.expansion import Expansion
from sdgpu.operators.slopes import KernelSlopes
from sdgpu.operators.tile_prices import FUSED_ROWS, TilePrices
from sdgpu.operators.tiled import TiledOperator

__all__ = ["KeOpsOperator", "why_not"]

PROBE_SECONDS = 120.0
_PROBE = (
    "import torch, pykeops; pykeops.set_verbose(False)\n"
    "from pykeops.torch import LazyTensor\n"
    "x = torch.ones(3, 1)\n"
    "assert float((LazyTensor(x[:, None]) * LazyTensor(x[None])).sum(1).sum()) == 9.0\n"
)
_ANSWER: list[str] = []


def why_not() -> str:
    """Why KeOps cannot be used here, as a sentence; empty if it can. Tried once in a process."""
    if importlib.util.find_spec("pykeops") is None:
        return "KeOps is not installed: pip install 'sdgpu[keops]'"
    if not _ANSWER:
        _ensure_cache_folder()
        _ANSWER.append(_probe())
    return _ANSWER[0]


def _ensure_cache_folder() -> None:
    """A folder of this process's own for what KeOps compiles, where the user's cannot be written."""
    if os.environ.get("KEOPS_CACHE_FOLDER"):
        return
    try:
        cache_folder = Path.home() / ".cache"
        cache_folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache_folder, os.W_OK)
    except (OSError, RuntimeError):  # no home at all
        writable = False
    if not writable:
        folder = tempfile.mkdtemp(prefix="sdgpu-keops-")  # nobody else's: what is in it is run
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["KEOPS_CACHE_FOLDER"] = folder


def _probe() -> str:
    command = [sys.executable, "-c", _PROBE]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=os.environ.copy()
        )
    except subprocess.TimeoutExpired:
        return f"KeOps did not compile a formula of one product in {PROBE_SECONDS:.0f} s"
    if run.returncode == 0:
        return ""
    message = (run.stderr.strip().splitlines() or ["no message"])[-1]
    return f"KeOps cannot compile here (is there a C++ compiler?): {message}"


@dataclass(frozen=True, eq=False)
class KeOpsOperator:
    """K by KeOps: O(n d) memory, fast on CUDA for few features.

    Parameters
    ----------
    kernel : Kernel
        One with a formula: no function, no precomputed matrix.
    X : array_like (n, d)
        numpy or torch; products come back in it.
    precision : {"float32", "float64"}, optional
        By default the dtype of X. Sums are float64 in either.

    Raises
    ------
    ImportError
        If KeOps is missing or cannot compile here; says which.
    TypeError
        For a kernel without a formula.
    """

    kernel: Kernel
    X: Any = field(repr=False)
    precision: str | None = None
    _tiled: TiledOperator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        reason = why_not()
        if reason:
            raise ImportError(reason)
        if self.kernel.opaque is not None:
            raise TypeError(
                f"{type(self.kernel.opaque).__name__} has no formula for KeOps: use operator='tiled' or "
                "'dense'"
            )
        # rows, precision, cross products and columns are those of the tiled operator
        tiled = TiledOperator(self.kernel, self.X, self.precision)
        if is_csr(tiled.X):
            raise TypeError("X is sparse, which KeOps does not take: use a TiledOperator")
        if tiled.precision == "mixed":
            raise ValueError("precision='mixed' is for tiles: KeOps takes 'float32' or 'float64'")
        object.__setattr__(self, "_tiled", tiled)
        object.__setattr__(self, "X", tiled.X)
        object.__setattr__(self, "precision", tiled.precision)

    @property
    def n(self) -> int:
        """Training rows."""
        return self._tiled.n

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.X.shape[1])

    @property
    def is_precomputed(self) -> bool:
        """Whether X is the Gram matrix itself: never."""
        return False

    @staticmethod
    def product_seconds(n: int, d: int, columns: int, precision: str, rates: Rates) -> float:
        """Of one product: both halves, every column by itself; measured against tiles on a CPU."""
        values = TilePrices(n, d, precision, keep=True).value_seconds(rates)
        tiles = TilePrices(n, d, precision, compiled=n >= FUSED_ROWS)
        return 10 * (values + tiles.multiply_seconds(columns, rates))

    @property
    def rows(self) -> Rows:
        """The rows of X, made ready."""
        return self._tiled.rows

    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c), float64, in the library of X."""
        tiled = self._tiled
        block = tiled.torch_backend.asarray(V).to(self.rows.sample.dtype).contiguous()
        options = {"use_double_acc": True} if self.precision == "float32" else {}
        return tiled.backend.asarray(self._lazy.__matmul__(block, **options))

    def cross(self, X_new: Any) -> Cross:
        """kappa(X_new, X) as an operator (m, n)."""
        return self._tiled.cross(X_new)

    def slopes(self, X_new: Any) -> KernelSlopes:
        """Derivatives of kappa(X_new, X) by the new rows, by tiles."""
        return self._tiled.slopes(X_new)

    def expansion(self, V: Any) -> Expansion:
        """The function with coefficients V (n, c), as its parts."""
        return Expansion.of_rows(self.kernel, self.X, V)

    def diag(self) -> Any:
        """Diagonal of K, (n,)."""
        return self._tiled.diag()

    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx))."""
        return self._tiled.columns(idx)

    @cached_property
    def _lazy(self) -> Any:
        return lazy_gram(self.kernel, self.rows)


def lazy_gram(kernel: Kernel, rows: Rows) -> Any:
    """The symbolic matrix kappa(X, X) of ready torch rows."""
    import pykeops
    from pykeops.torch import LazyTensor

    pykeops.set_verbose(False)

    def leaf(part: Profile, rows: Rows) -> Any:
        tile = _statistic(part, rows, LazyTensor)
        if rows.norms is None:
            return part.profile(tile, None, None)
        if not part.defined_at_zero and bool((rows.norms == 0).any()):
            raise ValueError(
                "X has rows of zeros, where degree 0 needs operator='tiled' or 'dense'"
            )
        features = rows.right.shape[1] - 2
        if part.exact_opposite and features == 1:
            raise ValueError(
                f"rows of one feature are parallel or opposite, where {part!r} loses half of the digits "
                "in KeOps: use operator='tiled' or 'dense'"
            )
        norms = rows.norms.contiguous()
        return part.profile(
            tile, LazyTensor(norms[:, None, None]), LazyTensor(norms[None, :, None])
        )

    return kernel.symbolic(leaf, rows)


def _statistic(kernel: Profile, rows: Rows, lazy: Any) -> Any:
    """The statistic of all pairs; squared distances directly, three times faster in KeOps."""
    if kernel.statistic == "product" and kernel.distance:
        values = rows.right[:, :-2].contiguous()  # without the augmentation
        difference = lazy(values[:, None, :]) - lazy(values[None, :, :])
        return kernel.sign * (difference**2).sum(-1)
    left, right = lazy(rows.left[:, None, :]), lazy(rows.right[None, :, :])
    if kernel.statistic == "product":
        return (left * right).sum(-1)
    return TERMS[kernel.statistic](left, right).sum(-1)
