"""One step of a path, or a limit, as an object that only predicts: to keep, to save, to take elsewhere."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.arrays import Template, inputs
from sdgpu.backend.backends import Backend, give_back, resolve, to_numpy
from sdgpu.backend.checks import choice
from sdgpu.backend.memory import budget
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sealed_tensors import fault_in_words, read_tensors, tensor_path, write_tensors
from sdgpu.backend.sparse_rows import csr_of, is_csr, is_sparse
from sdgpu.backend.storage import check_writable
from sdgpu.engine.model import Model
from sdgpu.kernels.description import describe_kernel, described_kernel
from sdgpu.kernels.feature_maps.stored import stored_map
from sdgpu.operators import DenseOperator
from sdgpu.operators.expansion import Expansion, expansion_of
from sdgpu.operators.feature_rows import FeatureOperator

if TYPE_CHECKING:
    from sdgpu.engine.torch_module import PredictorModule

__all__ = ["Predictor", "open_predictor"]

FORMAT = 1
DTYPES = ("float32", "float64")
_PLACES = ("X.indices", "X.indptr")  # of the entries of sparse rows
SAMPLE = 256  # rows at which float32 is compared


@dataclass(frozen=True, eq=False)
class Predictor:
    """One function of a fit without its spectrum: rows X and n c numbers, small enough to keep or pickle.

    Made by `path.predictor(step)`, `limit.predictor()` and :func:`sdgpu.open_predictor`.
    """

    _model: Model = field(repr=False)
    _dual: Any = field(repr=False)
    _opened: bool = field(default=False, repr=False)  # from a file: takes rows of any library

    @property
    @underflow_is_zero
    def dual(self) -> Any:
        """Dual coefficients (n, c), in the caller's library."""
        dual = self._model.row_coefficients(self._dual)
        return give_back(self._model.template, dual, copy=True)

    @underflow_is_zero
    def predict(self, X_new: Any) -> Any:
        """Predictions at new rows (m, d): (m, c). Out of a file, in the library of the rows."""
        return self._model_beside(X_new).predict(self._dual, X_new)

    @underflow_is_zero
    def gradient(self, X_new: Any) -> Any:
        """Derivatives of the predictions by new rows (m, d): (m, c, d); see :meth:`Path.gradient`."""
        return self._model_beside(X_new).gradient(self._dual, X_new)

    @underflow_is_zero
    def save(self, path: str | os.PathLike[str], *, dtype: str = "float64") -> None:
        """Write what predicts to a ``.safetensors`` file, whole or not at all, with a checksum.

        Rows with coefficients (sparse ones as CSR), the coefficients and a constant; or the feature map and
        its coefficients.

        Parameters
        ----------
        path : path
        dtype : {"float64", "float32"}, default "float64"
            Of the numbers in the file, and of what it predicts.

        Raises
        ------
        TypeError
            For a kernel or features that are functions, networks or matrices.
        ValueError
            For numbers that leave float32, and operators that do not say what their functions are made of.
        OSError
            If the folder cannot be written, or the disk is full: what stood there is untouched.

        Warns
        -----
        UserWarning
            If float32 moves predictions at 256 of the rows by more than a thousandth of their size.
        """
        target = tensor_path(path)
        check_writable(target)
        choice("dtype", dtype, DTYPES)
        expansion, template = self._expansion(), self._model.template
        arrays: dict[str, Any] = {
            "coefficients": expansion.coefficients,
            "constant": expansion.constant,
        }
        described: dict[str, Any] = {"map": None}
        places: dict[str, np.ndarray] = {}  # of the entries of sparse rows
        kernel: Any = expansion.kernel
        try:
            if expansion.map is not None:
                described["map"], own = expansion.map.state()
                arrays |= {f"map.{name}": array for name, array in own.items()}
                kernel = getattr(expansion.map, "kernel", None)
            elif is_csr(expansion.X):
                places = dict(zip(_PLACES, (expansion.X.indices, expansion.X.indptr), strict=True))
                arrays["X.data"] = expansion.X.data
            else:
                arrays["X"] = expansion.X
            described["kernel"] = None if kernel is None else describe_kernel(kernel)
        except TypeError as error:
            raise TypeError(
                f"{error}; pickle the predictor where its code can be imported"
            ) from error
        metadata = {
            "predictor": FORMAT,
            **described,
            "dtype": dtype,
            "d": int(self._model.operator.d),
            "flat": template.flat,
            "columns": template.columns,
            "sparse": template.takes_sparse,
        }
        places = {name: array.astype(np.int64) for name, array in places.items()}
        stored = {name: _rounded(array, dtype, name) for name, array in arrays.items()} | places
        if dtype == "float32":
            _warn_of_rounding(arrays | places, stored, metadata)
        write_tensors(target, stored, metadata)

    @underflow_is_zero
    def module(self, *, dtype: str = "float64") -> PredictorModule:
        """The same function in plain torch, with all numbers as buffers.

        Parameters
        ----------
        dtype : {"float64", "float32"}, default "float64"
            Of the buffers, and of the rows that it takes; ``.to`` changes both.

        Returns
        -------
        torch.nn.Module
            forward(X) of tensors (m, d) gives (m, c), or (m,) for 1-D targets.

        Raises
        ------
        TypeError
            For kernels and features that have no formula.
        ValueError
            For numbers that leave float32, and rows of one feature where the formula has no digits.

        Notes
        -----
        m n kernel values at once, and m n d numbers for kernels with a kink (Laplacian, Matern 1/2,
        ArcCosine(0), NTK): pass rows in blocks. No row is checked. On the CPU in float64 it agrees with
        :meth:`predict` to rounding; for ArcCosine(0) and NTK of rows that point in opposite directions to
        1e-8.
        """
        from sdgpu.engine.torch_module import module_of

        choice("dtype", dtype, DTYPES)
        return module_of(self._expansion(), dtype, flat=self._model.template.flat)

    def _expansion(self) -> Expansion:
        expansion, offset = expansion_of(self._model.operator, self._dual), self._model.offset
        if offset is None:
            return expansion
        return replace(expansion, constant=expansion.constant + to_numpy(offset))

    def _model_beside(self, X_new: Any) -> Model:
        if not self._opened or is_sparse(X_new):
            return self._model
        rows = inputs(X_new, "X_new", empty=True)
        template = self._model.template
        sample = Template.of(rows, rows, flat=True).sample
        return replace(self._model, template=replace(template, sample=sample))


def open_predictor(
    path: str | os.PathLike[str],
    *,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
) -> Predictor:
    """A predictor out of a file of :meth:`Predictor.save`; nothing in it is executed.

    Parameters
    ----------
    path : path
    device : str or Backend, default "auto"
        Where to compute, in float64.
    memory : int or str, optional
        Bytes that a prediction may take, as in :func:`sdgpu.fit`.

    Returns
    -------
    Predictor
        Takes rows of any library. Its predictions are those of the path that it comes from to rounding in
        float64: the constants are added up, and rows without coefficients are gone; with dtype="float32" to
        that of the numbers.

    Raises
    ------
    FileNotFoundError, OSError
        If there is none, or it may not be read.
    ValueError
        If it is damaged, or holds something else: names the file.

    Examples
    --------
    >>> import numpy as np, sdgpu, tempfile, os
    >>> X = np.linspace(0, 1, 11)[:, None]
    >>> limit = sdgpu.fit(X, np.sin(6 * X[:, 0]), sdgpu.Gaussian(20.0), 0.1).limit(alpha=0.5)
    >>> file = os.path.join(tempfile.mkdtemp(), "limit.safetensors")
    >>> limit.predictor().save(file)
    >>> bool(np.allclose(sdgpu.open_predictor(file).predict(X), limit.predict(X)))
    True
    """
    source = tensor_path(path)
    arrays, metadata = read_tensors(source, "predictor")
    backend, allowed = resolve(device), budget(memory, resolve(device).name)
    try:
        if metadata["predictor"] != FORMAT:
            raise ValueError(f"it is of version {metadata['predictor']!r}, not {FORMAT}")
        predictor = _restored(arrays, metadata, backend, allowed)
        with np.errstate(over="ignore", invalid="ignore"):
            predictor.predict(np.zeros((0, metadata["d"])))  # makes its rows ready
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} holds no predictor: {fault_in_words(error)}") from error
    return predictor


def _restored(
    arrays: dict[str, np.ndarray], metadata: dict[str, Any], backend: Backend, memory: int
) -> Predictor:
    dtype = choice("dtype", metadata["dtype"], DTYPES)
    places = {name: array for name, array in arrays.items() if name in _PLACES}
    arrays = {name: array for name, array in arrays.items() if name not in _PLACES}
    for name, array in arrays.items():
        if array.dtype != dtype or not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN, infinity or {array.dtype}")
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    coefficients, constant = arrays["coefficients"], arrays["constant"]
    for name in ("flat", "sparse"):
        if not isinstance(metadata[name], bool):
            raise ValueError(f"{name}={metadata[name]!r} is neither true nor false")
    kernel = None if metadata["kernel"] is None else described_kernel(metadata["kernel"])
    operator: Any
    if metadata["map"] is None:
        if kernel is None:
            raise ValueError("it has neither a kernel nor a feature map")
        if places:
            X = _sparse_rows(arrays | places, metadata["d"])
            operator = DenseOperator(kernel, X, backend.tile, home=backend)
        else:
            operator = DenseOperator(kernel, backend.asarray(arrays["X"]), backend.tile)
    else:
        own = {name[4:]: array for name, array in arrays.items() if name.startswith("map.")}
        feature_map = stored_map(metadata["map"], own, kernel)  # type: ignore[arg-type]
        mean = backend.asarray(np.zeros(feature_map.size))
        operator = FeatureOperator(feature_map, backend, mean, "float64")
    c, d = (*constant.shape, 0)[0], metadata["d"]
    if coefficients.shape != (operator.n, c) or constant.shape != (c,) or not c or d != operator.d:
        raise ValueError(
            f"coefficients {coefficients.shape} and constants {constant.shape} for {operator.n} rows of "
            f"{operator.d} features, not {d!r}"
        )
    if metadata["flat"] and c != 1:
        raise ValueError(f"{c} outputs without an axis")
    template = Template(
        np.zeros((0, d)),
        dtype,
        metadata["flat"],
        columns=_names(metadata["columns"], d),
        takes_sparse=metadata["sparse"] and bool(places or getattr(operator, "map", None)),
    )
    model = Model(operator, backend, template, memory, backend.asarray(constant))
    return Predictor(model, backend.asarray(coefficients), True)


def _sparse_rows(arrays: dict[str, np.ndarray], d: int) -> Any:
    indices, indptr = (arrays[name] for name in _PLACES)
    return csr_of(arrays["X.data"], indices, indptr, d)


def _names(columns: Any, d: int) -> tuple[str, ...] | None:
    """Names of columns, checked."""
    if columns is None:
        return None
    names = tuple(columns)
    if len(names) != d or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{len(names)} names for {d} columns")
    return names


def _warn_of_rounding(
    arrays: dict[str, Any], stored: dict[str, np.ndarray], metadata: dict[str, Any]
) -> None:
    """Say if numbers of float32 predict something else, where there are rows to look at."""
    rows = arrays.get("X", arrays.get("map.landmarks"))
    if "X.data" in arrays:
        rows = _sparse_rows(arrays, metadata["d"])
    if rows is None:
        return
    backend = resolve("cpu")
    exact, rounded = (
        _restored(
            numbers, {**metadata, "dtype": kind}, backend, budget(None, backend.name)
        ).predict(rows[:SAMPLE])
        for numbers, kind in ((arrays, "float64"), (stored, "float32"))
    )
    moved, size = float(np.abs(exact - rounded).max()), float(np.abs(exact).max())
    if moved > 1e-3 * size:
        warnings.warn(
            f"float32 moves predictions by {moved:.1e} of {size:.1e}: coefficients of a small lam cancel; "
            "take dtype='float64'",
            stacklevel=4,
        )


def _rounded(array: Any, dtype: str, name: str) -> np.ndarray:
    """The numbers in the dtype of the file.

    Raises
    ------
    ValueError
        If they leave it.
    """
    with np.errstate(over="ignore"):
        rounded = np.asarray(array, dtype=dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{name} leaves {dtype}: rescale the data, or take dtype='float64'")
    return rounded
