"""A torch module as a linear function of its parameters, row by row: what its tangent kernel is made of.

A weight W that only linear maps use has the gradient

    d f_j / d W = sum_p s_jp a_p',

a sum over the positions p where it is applied: a_p (i,) goes in there, and s_jp (o,) is the gradient of
output j with respect to what comes out. One backward pass to the outputs of all linear maps gives every
s_jp. For a fully connected layer (one position) the part of W in the tangent kernel is a product of two
small Gram matrices, (S S') * (A A'): the gradient itself, o i numbers, is not made (Novak,
Sohl-Dickstein and Schoenholz 2022). With many positions it pays to multiply gradients instead: they are
made from s and a a strip at a time, or, where that is less, kept beside those of all other parameters.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call, vjp, vmap

from sdgpu.backend.precision import tf32
from sdgpu.kernels.empirical_ntk.jacobian_factors import BLOCK, Factors, WeightFactors
from sdgpu.kernels.empirical_ntk.tracing import Use, Watch, first_line, trial

__all__ = ["Linearised", "linearise"]

SAMPLES = 4  # rows that are tried beforehand


@dataclass(frozen=True)
class Weight:
    """A weight that only linear maps use: p positions in all, i inputs, o outputs.

    Attributes
    ----------
    name : str
    positions, inputs, outputs : int
    input_size : int
        Numbers of its inputs as they are kept.
    form : {"pairs", "strips", "dense"}
        Signals and inputs whose products are multiplied; signals and inputs that are multiplied out in
        strips; the gradient.
    window : dict, optional
        Of a convolution whose inputs are kept as images.
    """

    name: str
    positions: int
    inputs: int
    outputs: int
    input_size: int
    form: str
    window: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Linearised:
    """A module ready for gradients, on one device and in one dtype. Made by :func:`linearise`.

    Attributes
    ----------
    module : torch.nn.Module
        Called with the tensors below; its own are not used.
    shape : tuple
        Of one input.
    constants, buffers, general : dict of tensors
        Parameters that are not differentiated, the weights of linear maps among them; buffers;
        parameters that are.
    uses : tuple of Use
        Linear maps in the order of the forward pass.
    weights : tuple of Weight
    outputs : int
        c.
    activations : int
        Numbers of all intermediate results for one row.
    """

    module: torch.nn.Module
    shape: tuple[int, ...]
    constants: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    general: dict[str, torch.Tensor]
    uses: tuple[Use, ...]
    weights: tuple[Weight, ...]
    outputs: int
    activations: int

    def sizes(self, outputs: int) -> tuple[int, list[tuple[int, int]]]:
        """Dense numbers of one row, for so many outputs; signals and inputs of each other weight."""
        dense = sum(value.numel() for value in self.general.values())
        dense += sum(w.inputs * w.outputs for w in self.weights if w.form == "dense")
        pairs = [(outputs * w.outputs, w.inputs) for w in self.weights if w.form != "dense"]
        return outputs * dense, pairs

    def numbers(self, outputs: int) -> int:
        """Numbers of the factors of one row, for so many outputs."""
        factored_weights = (w for w in self.weights if w.form != "dense")
        factors = sum(w.input_size + w.positions * outputs * w.outputs for w in factored_weights)
        return self.sizes(outputs)[0] + factors

    def peak_numbers(self, outputs: int) -> int:
        """Numbers that one row takes while its factors are made."""
        unfolded = sum(w.positions * w.inputs for w in self.weights if w.form != "strips")
        return (1 + outputs) * self.activations + unfolded + 2 * self.numbers(outputs)

    def factors_from(self, tensors: Sequence[torch.Tensor]) -> Factors:
        """Factors from their tensors: dense, then signals and inputs in turns."""
        weights = (
            WeightFactors(signals, inputs, weight.form == "strips", weight.window)
            for weight, signals, inputs in zip(
                (w for w in self.weights if w.form != "dense"),
                tensors[1::2],
                tensors[2::2],
                strict=True,
            )
        )
        return Factors(tensors[0], tuple(weights))

    @torch.inference_mode(False)
    def factors(self, X: torch.Tensor, cotangents: torch.Tensor) -> Factors:
        """Gradients of the combinations of outputs in cotangents (g, c), at rows X (b, d).

        Raises
        ------
        ValueError
            If the module cannot be run by ``torch.func.vmap``, or something is NaN or infinite.
        """
        module = skeleton(self.module)
        names = {id(self.constants[weight.name]): weight.name for weight in self.weights}
        probes = tuple(X.new_zeros(use.shape) for use in self.uses)

        def row(x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            def run(probes: Any, general: Any) -> tuple[torch.Tensor, Any]:
                arguments = self.constants, copies(self.buffers), general
                with Watch(names, probes) as watch:
                    y = functional_call(module, arguments, (x.reshape(1, *self.shape),))
                return y[0], tuple(watch.inputs)

            vjp_result: Any = vjp(run, probes, self.general, has_aux=True)
            y, pull, inputs = vjp_result
            signals, general = vmap(pull)(cotangents.to(y.dtype))
            return y, self._parts(signals, general, inputs)

        try:
            with tf32(allowed=False) if X.is_cuda else nullcontext():
                y, parts = vmap(row)(X.clone() if X.is_inference() else X)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever the module raises
            raise ValueError(
                f"module cannot be differentiated row by row by torch.func.vmap: {first_line(error)}"
            ) from error
        # one look, which waits for a GPU
        if not bool(torch.stack([torch.isfinite(part).all() for part in (y, *parts)]).all()):
            raise ValueError(
                "module gives NaN or infinity, or has gradients that are: scale the rows, or look at its "
                "parameters"
            )
        return self.factors_from([part.to(X.dtype) for part in parts])

    def _parts(
        self, gradients: Any, general: dict[str, torch.Tensor], inputs: Any
    ) -> tuple[torch.Tensor, ...]:
        """Factors of one row from the gradients at its linear maps (g, ...) and of other parameters."""
        dense = [value.reshape(value.shape[0], -1) for value in general.values()]
        factors: list[torch.Tensor] = []
        for weight in self.weights:
            pairs = [
                (use.signals(gradient), x if weight.window else use.inputs(x))
                for use, gradient, x in zip(self.uses, gradients, inputs, strict=True)
                if use.weight == weight.name
            ]
            signals, ins = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            if weight.form == "dense":
                dense.append(torch.einsum("pgo,pi->goi", signals, ins).flatten(1))
            else:
                factors += [signals, ins]
        if not dense:
            dense = [factors[0][0, :, :0]]  # (g, 0)
        return torch.cat(dense, dim=1), *factors


@torch.inference_mode(False)
def linearise(
    module: torch.nn.Module,
    X: torch.Tensor,
    shape: tuple[int, ...] | None,
    *,
    output: int | None,
    pair: bool,
) -> Linearised:
    """Try the module on the first rows and find its linear maps.

    Parameters
    ----------
    module : torch.nn.Module
    X : tensor (s, d)
        The result is for its dtype and device.
    shape : tuple, optional
        Of one input; (d,) by default.
    output : int, optional
        The only output that is wanted.
    pair : bool
        Keep every weight of linear maps as signals and inputs.

    Raises
    ------
    TypeError, ValueError
        As :func:`sdgpu.kernels.empirical_ntk.tracing.trial`, and for rows that do not have that shape.
    """
    row_shape = (int(X.shape[1]),) if shape is None else shape
    if torch.Size(row_shape).numel() != X.shape[1]:
        raise ValueError(
            f"shape={row_shape} takes {torch.Size(row_shape).numel()} numbers, but the data have "
            f"{X.shape[1]} features"
        )

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        dtype = X.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device=X.device, dtype=dtype, copy=True)

    module = skeleton(module)
    parameters = dict(module.named_parameters())
    buffers = {name: cast(value) for name, value in module.named_buffers()}
    constants = {name: cast(value) for name, value in parameters.items() if not value.requires_grad}
    trained = {name: cast(value) for name, value in parameters.items() if value.requires_grad}
    for value in trained.values():
        value.requires_grad_(True)
    sample = X[:SAMPLES] if len(X) else X.new_zeros(1, X.shape[1])
    fixed_tensors = constants | copies(buffers)
    # on a copy: hooks such as those of weight_norm leave tensors of the graph behind
    c, watch = trial(
        skeleton(module), fixed_tensors, trained, sample.reshape(-1, *row_shape), output
    )
    uses = tuple(use for use in watch.uses if use.weight not in watch.used_elsewhere)
    g = c if output is None else 1
    weights = tuple(
        _weight(trained[name], name, [use for use in uses if use.weight == name], g, pair=pair)
        for name in dict.fromkeys(use.weight for use in uses)
    )
    detached = {name: value.detach() for name, value in trained.items()}
    linear_names = {weight.name for weight in weights}
    constants |= {name: detached[name] for name in linear_names}
    general = {name: value for name, value in detached.items() if name not in linear_names}
    return Linearised(
        module=module,
        shape=row_shape,
        constants=constants,
        buffers=buffers,
        general=general,
        uses=uses,
        weights=weights,
        outputs=c,
        activations=watch.numbers,
    )


def skeleton(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module with the same tensors: torch.func swaps them inside while it runs."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies for a call that may write to them."""
    return {name: value.clone() for name, value in tensors.items()}


def _weight(
    tensor: torch.Tensor, name: str, uses: list[Use], outputs: int, *, pair: bool
) -> Weight:
    """How the gradients of so many outputs are kept, and where they are fewest multiplied."""
    o, i, p = int(tensor.shape[0]), tensor[0].numel(), sum(use.positions for use in uses)
    # multiplications for a pair of rows: of signals and inputs at all positions, or of gradients
    if pair or p * p * (i + outputs * o) <= outputs * o * i:
        return Weight(
            name=name, positions=p, inputs=i, outputs=o, input_size=p * i, form="pairs", window=None
        )
    window = uses[0].window if len(uses) == 1 else None
    input_size = uses[0].input_size if window else p * i
    # to multiply out again for every block must not cost more than the block
    strips = p <= BLOCK and input_size + p * outputs * o < outputs * o * i
    return (
        Weight(
            name=name,
            positions=p,
            inputs=i,
            outputs=o,
            input_size=input_size,
            form="strips",
            window=window,
        )
        if strips
        else Weight(
            name=name, positions=p, inputs=i, outputs=o, input_size=0, form="dense", window=None
        )
    )
