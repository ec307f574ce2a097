"""The empirical tangent kernel of a torch module: what its linearisation is trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.arrays import Template, dtype_name, library, slices
from sdgpu.backend.backends import give_back, to_numpy
from sdgpu.backend.checks import choice, integer
from sdgpu.backend.copying import copy_module
from sdgpu.backend.memory import available, parse_bytes, require
from sdgpu.kernels.augmented_rows import Rows, inner_rows, product
from sdgpu.kernels.kernel import Kernel

if TYPE_CHECKING:
    import torch

    from sdgpu.kernels.empirical_ntk.jacobian_factors import Factors
    from sdgpu.kernels.empirical_ntk.linearisation import Linearised

__all__ = ["EmpiricalNTK"]

FORMS = ("trace", "output")
SKETCH = 4096  # numbers of a row with projection="auto"
LARGEST_EXACT = 2**18  # numbers of a row that "auto" keeps as they are
TILE = 2048  # rows of a tile: all have to be evaluated for it, or multiplied out
EVALUATION = 2**25  # bytes of one evaluation on the CPU, where more at once is no faster

_REMEDY = "raise memory=, or freeze parameters with requires_grad_(False)"


@dataclass(frozen=True, repr=False)
class EmpiricalNTK(Kernel):
    """Tangent kernel of a torch module at its present parameters.

    With J_j(x) the gradient of output j with respect to all trainable parameters theta,

        kappa(x, x') = (1/c) sum_j <J_j(x), J_j(x')>        (form "trace"),
        kappa(x, x') = <J_j(x), J_j(x')>                    (form "output", output=j).

    The mean over outputs, so that for c = 1 both are the same, and for a wide network with c outputs
    the trace tends to :class:`NTK`. It is a sum over layers, and so it is computed.

    Parameters
    ----------
    module : torch.nn.Module
        Takes inputs (rows, ...), gives (rows, c). A copy is kept: the caller's own is neither
        changed nor followed in its later training. Parameters with ``requires_grad=False`` and
        parameters that no output depends on have no part in the kernel.
    shape : tuple of ints, optional
        Of one input, for example ``(1, 8, 8)``: rows (n, 64) become (n, 1, 8, 8). By default rows stay
        as they are.
    form : {"trace", "output"}, default "trace"
    output : int, optional
        The output of form "output".
    projection : int or "auto", optional
        Replace the gradients by random features, q numbers a row, with the kernel as their expectation
        and a standard error of sqrt(2/q) to sqrt(6/q) of sqrt(kappa(x, x) kappa(x', x')), the larger
        where a single fully connected layer makes up the kernel. "auto" takes q = 4096 if the exact
        kernel needs more than 262,144 numbers a row. By default the kernel is exact.
    seed : int, default 0
        Of the projection.
    memory : int or str, optional
        Bytes for gradients ("2GB"), beside the matrix itself and beside what a fit may use. A quarter
        of what is free by default.

    Raises
    ------
    TypeError
        For something that is no module, outputs that are no tensor of floats, or options of the wrong
        type.
    ValueError
        For a module without trainable parameters, batch norm or dropout in training mode; when rows
        come in, for rows that do not have the shape, outputs that are not (rows, c), an output that is
        not there, NaN, whatever the module raises, a module that ``torch.func.vmap`` cannot run or that
        changes its parameters or buffers (spectral norm in training mode), and for parameters that are
        used but whose gradient is missing (detach, argmax) or 0 because of a step function.
    MemoryError
        If one row does not fit.

    Notes
    -----
    Rows are evaluated one by one (``torch.func.vmap``), in the dtype and on the device of the data, with
    TF32 off: a forward pass and c backward passes each. A weight (o, i) that ``Linear`` or plain
    ``Conv2d`` layers apply at p positions takes at most c o i numbers a row, or p (i + c o), its inputs
    and signals, where that is less, and min(p^2 (i + c o), c o i) multiplications for each pair of rows
    (:mod:`sdgpu.kernels.empirical_ntk.linearisation`). All other parameters take c of both.

    If the gradients of all rows fit half of `memory`, they are kept and every row is evaluated once.
    Otherwise tiles evaluate them, some outputs at a time, in chunks that fit, and each row is evaluated
    again for every chunk that it meets. Where products with K are repeated (methods other than "eigh") a
    module of that size should have a projection.

    References
    ----------
    Jacot, Gabriel and Hongler (2018); Novak, Sohl-Dickstein and Schoenholz (2022); Pham and Pagh (2013);
    Borup and Andersen (2021), Appendix C.

    Examples
    --------
    >>> import numpy as np, torch
    >>> line = torch.nn.Linear(2, 1)  # gradient (x, 1)
    >>> EmpiricalNTK(line)(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[ 6., 12.],
           [12., 26.]])
    """

    module: Any
    shape: tuple[int, ...] | None = None
    form: str = "trace"
    output: int | None = None
    projection: int | str | None = None
    seed: int = 0
    memory: int | float | str | None = None
    _linearisations: dict[Any, Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_module(self.module)
        choice("form", self.form, FORMS)
        if (self.output is None) != (self.form == "trace"):
            raise ValueError(
                f"output={self.output!r} with form={self.form!r}: give output=j for form='output', and "
                "for that alone"
            )
        if self.output is not None:
            object.__setattr__(self, "output", integer("output", self.output, 0))
        if self.projection != "auto" and self.projection is not None:
            if isinstance(self.projection, str):
                raise ValueError(f"projection={self.projection!r} must be a number or 'auto'")
            object.__setattr__(self, "projection", integer("projection", self.projection, 2))
        integer("seed", self.seed, 0)
        if self.memory is not None:
            parse_bytes(self.memory)
        object.__setattr__(self, "shape", _shape(self.shape))
        try:
            module = copy_module(self.module)
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"module cannot be copied: {error}") from error
        object.__setattr__(self, "module", module)

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value!r}"
            for name, value in (
                ("shape", self.shape),
                ("output", self.output),
                ("projection", self.projection),
            )
            if value is not None
        )
        seed = f", seed={self.seed}" if self.projection is not None else ""
        kind, digest = type(self.module).__name__, _digest(self.module)
        return f"EmpiricalNTK({kind} {digest}, form={self.form!r}{options}{seed})"

    def rows(self, X: Any, centre: Any) -> Rows:
        tensor = _tensor(X)
        line, q = self._linearise(tensor)
        if q is not None:
            return inner_rows(_like(X, self._features(line, q, tensor)))
        data = Rows(X, X)
        outputs = slice(0, len(self._cotangents(line, tensor)))
        if not len(tensor) or outputs.stop not in self._group_sizes(line, tensor, len(tensor)):
            return Rows(None, None, parts=(data,))
        factors = self._factors(line, tensor, outputs)
        return Rows(None, None, parts=(data, *(Rows(_like(X, t), None) for t in factors.tensors)))

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        if not a.parts:
            return product(a, b, out)
        if len(a.parts) > 1 and len(b.parts) > 1:
            factors = self._row_factors(a)
            return _like(a.sample, factors.product(factors if same else self._row_factors(b)))
        return _like(a.sample, self._tile_in_chunks(a, b, same=same))

    def diagonal(self, rows: Rows) -> Any:
        if not rows.parts:
            return rows.norms
        if len(rows.parts) > 1:
            return _like(rows.sample, self._row_factors(rows).squares())
        X = _tensor(rows.sample)
        total, (line, _) = X.new_zeros(len(X)), self._linearise(X)
        groups, step = self._chunks(line, X, len(X))
        for group in groups:
            for part in slices(len(X), step):
                total[part] += self._factors(line, X[part], group).squares()
        return _like(rows.sample, total)

    def tile_rows(self, rows: Rows, tile: int) -> int:
        return max(tile, TILE) if rows.parts else tile

    def _tile_in_chunks(self, a: Rows, b: Rows, *, same: bool) -> torch.Tensor:
        """A tile whose gradients do not all fit the memory: some outputs and chunks of rows at a time."""
        X, Z = _tensor(a.sample), _tensor(b.sample)
        line, _ = self._linearise(Z)
        groups, step = self._chunks(line, X, len(X) if same else len(X) + len(Z))
        # what is held is no chunk of anything
        high_step, low_step = (len(r) if len(r.parts) > 1 else step for r in (a, b))
        K = X.new_zeros(len(X), len(Z))
        for group in groups:
            for high in slices(len(X), high_step):
                factors = self._chunk_factors(line, a, X, high, group)
                if same:
                    K[high, high] += factors.product(factors)
                for low in slices(high.start if same else len(Z), low_step):
                    block = factors.product(self._chunk_factors(line, b, Z, low, group))
                    K[high, low] += block
                    if same:
                        K[low, high] += block.T
        return K

    def _chunk_factors(
        self, line: Linearised, rows: Rows, X: torch.Tensor, part: slice, group: slice
    ) -> Factors:
        """Gradients of a group of outputs at a chunk of rows."""
        if len(rows.parts) > 1:
            return self._row_factors(rows)[part].of_outputs(group)
        return self._factors(line, X[part], group)

    def _chunks(self, line: Linearised, X: torch.Tensor, rows: int) -> tuple[list[slice], int]:
        """Groups of outputs, and rows of a chunk, so that the gradients of two chunks fit."""
        c, size, allowed = len(self._cotangents(line, X)), X.element_size(), self._allowed_bytes(X)
        group_sizes = self._group_sizes(line, X, rows)
        if group_sizes:
            return list(slices(c, group_sizes[-1])), max(rows, 1)
        least_bytes = 4 * size * line.numbers(1)
        require(least_bytes, allowed, "the gradient of one output at two rows", _REMEDY)
        return list(slices(c, 1)), allowed // least_bytes

    def _group_sizes(self, line: Linearised, X: torch.Tensor, rows: int) -> list[int]:
        """Numbers of outputs whose gradients at so many rows fit half of the memory."""
        half = self._allowed_bytes(X) // (2 * X.element_size())
        return [
            g
            for g in range(1, len(self._cotangents(line, X)) + 1)
            if rows * line.numbers(g) <= half and line.peak_numbers(g) <= half
        ]

    def _row_factors(self, rows: Rows) -> Factors:
        """The gradients that are kept with the rows."""
        line, _ = self._linearise(_tensor(rows.sample))
        return line.factors_from([_tensor(part.left) for part in rows.parts[1:]])

    def _factors(self, line: Linearised, X: torch.Tensor, group: slice) -> Factors:
        cotangents = self._cotangents(line, X)[group]
        full_tensors: list[torch.Tensor] = []
        for part in slices(len(X), self._batch_rows(line, X, len(cotangents))):
            tensors = line.factors(X[part], cotangents).tensors
            full_tensors = full_tensors or [t.new_empty(len(X), *t.shape[1:]) for t in tensors]
            for target, tensor in zip(full_tensors, tensors, strict=True):
                target[part] = tensor
        return line.factors_from(full_tensors)

    def _features(self, line: Linearised, q: int, X: torch.Tensor) -> torch.Tensor:
        """Random features (n, q)."""
        from sdgpu.kernels.empirical_ntk.jacobian_factors import sketch

        cotangents = self._cotangents(line, X)
        project = sketch(q, self.seed, *line.sizes(len(cotangents)), X)
        features = X.new_empty(len(X), q)
        for part in slices(len(X), self._batch_rows(line, X, len(cotangents))):
            features[part] = project(line.factors(X[part], cotangents))
        return features

    def _batch_rows(self, line: Linearised, X: torch.Tensor, outputs: int) -> int:
        """Rows that are evaluated at once."""
        allowed, row_bytes = self._allowed_bytes(X), X.element_size() * line.peak_numbers(outputs)
        require(row_bytes, allowed, f"evaluating one row for {outputs} outputs", _REMEDY)
        share = allowed // 4 if X.device.type != "cpu" else min(allowed // 4, EVALUATION)
        return max(1, share // row_bytes)

    def _allowed_bytes(self, X: torch.Tensor) -> int:
        if self.memory is not None:
            return parse_bytes(self.memory)
        return available(str(X.device)) // 4

    def _cotangents(self, line: Linearised, X: torch.Tensor) -> torch.Tensor:
        """Combinations of outputs (g, c) whose kernels are summed."""
        identity = X.new_zeros(line.outputs, line.outputs).fill_diagonal_(1.0)
        if self.output is not None:
            return identity[self.output : self.output + 1]
        return identity / line.outputs**0.5

    def _linearise(self, X: torch.Tensor) -> tuple[Linearised, int | None]:
        """The module made ready for the dtype, device and features of X, and the numbers of a sketch."""
        from sdgpu.kernels.empirical_ntk.linearisation import linearise

        key = (int(X.shape[1]), X.dtype, X.device)
        if key in self._linearisations:
            return self._linearisations[key]
        q = self.projection
        line = linearise(self.module, X, self.shape, output=self.output, pair=isinstance(q, int))
        if q == "auto":
            large = line.numbers(len(self._cotangents(line, X))) > LARGEST_EXACT
            q = SKETCH if large else None
            if large:
                line = linearise(self.module, X, self.shape, output=self.output, pair=True)
        entry = line, None if q is None else int(q)
        if len(X):  # without rows it was tried on zeros only
            self._linearisations[key] = entry
        return entry


def _check_module(module: Any) -> None:
    """Refuse what has no tangent kernel of its own."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.dropout import _DropoutNd

    if isinstance(module, type) and issubclass(module, torch.nn.Module):
        raise TypeError(f"module is the class {module.__name__}: make one, {module.__name__}(...)")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module={module!r} must be a torch.nn.Module")
    parameters = dict(module.named_parameters())
    for name, value in (*parameters.items(), *module.named_buffers()):
        if isinstance(
            value,
            torch.nn.parameter.UninitializedParameter | torch.nn.parameter.UninitializedBuffer,
        ):
            raise ValueError(f"{name} of module has no values yet: call module on one input first")
        if value.is_meta:
            raise ValueError(f"{name} of module is on the meta device and has no values: load some")
        if value.is_complex():
            raise TypeError(f"{name} of module is complex: the kernel is for real parameters")
    if not any(value.requires_grad for value in parameters.values()):
        raise ValueError(
            "module has no trainable parameters (requires_grad=True), so no tangent kernel"
        )
    for name, layer in module.named_modules():
        kind, layer_name = type(layer).__name__, name or "module itself"
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            reason = "so its outputs depend on the other rows of a batch"
            if layer.training:
                raise ValueError(
                    f"{layer_name} ({kind}) is in training mode, {reason}: call module.eval()"
                )
            raise ValueError(
                f"{layer_name} ({kind}) has no running statistics, {reason}: use another norm"
            )
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(
                f"{layer_name} ({kind}, p={layer.p}) is in training mode, so outputs are random: call "
                "module.eval()"
            )


def _shape(shape: Any) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not len(shape):
        raise TypeError(f"shape={shape!r} must be a tuple of sizes, for example (1, 8, 8)")
    return tuple(integer("shape", size, 1) for size in shape)


def _digest(module: torch.nn.Module) -> str:
    """Ten letters for the architecture and all its numbers."""
    import torch

    hasher = hashlib.sha256(repr(module).encode())
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode())
        flat = value.detach().cpu().reshape(-1).contiguous()
        hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:10]


def _tensor(X: Any) -> torch.Tensor:
    """The same numbers as a torch tensor, where they are."""
    import torch

    kind = library(X)
    if kind == "torch":
        return X
    if kind == "cupy":
        return torch.from_dlpack(X)
    return torch.from_numpy(np.require(to_numpy(X), requirements=["C", "W"]))


def _like(array: Any, tensor: torch.Tensor) -> Any:
    """The same numbers in the library, on the device and in the dtype of an array."""
    return give_back(Template(array[:0, ...], dtype_name(array), False), tensor, axis=False)
