"""The door to plans: how to fit on the device at hand, or what it costs on many that are not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

from sdgpu.backend.backends import Backend, resolve
from sdgpu.backend.device_classes import CLASSES, DeviceClass, device_class
from sdgpu.backend.memory import budget
from sdgpu.engine.planner import Plan, decide
from sdgpu.engine.scaling_parts import ScalingPlan
from sdgpu.engine.scaling_plan import scaling_plan
from sdgpu.kernels import Kernel

__all__ = ["plan"]


@overload
def plan(
    n: int,
    d: int,
    c: int = 1,
    lams: Any = 1.0,
    steps: int = 10,
    *,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
    tol: float = 1e-6,
    method: str = "auto",
    operator: str = "auto",
    precision: str | None = None,
    given: bool = False,
    kernel: Kernel | str | Callable[[Any, Any], Any] = "rbf",
    entries: float | None = None,
    ranks: None = None,
) -> Plan: ...
@overload
def plan(
    n: int,
    d: int,
    c: int = 1,
    lams: Any = 1.0,
    steps: int = 10,
    *,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
    tol: float = 1e-6,
    method: str = "auto",
    operator: str = "auto",
    precision: str | None = None,
    given: bool = False,
    kernel: Kernel | str | Callable[[Any, Any], Any] = "rbf",
    entries: float | None = None,
    ranks: int,
) -> ScalingPlan: ...
def plan(
    n: int,
    d: int,
    c: int = 1,
    lams: Any = 1.0,
    steps: int = 10,
    *,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
    tol: float = 1e-6,
    method: str = "auto",
    operator: str = "auto",
    precision: str | None = None,
    given: bool = False,
    kernel: Kernel | str | Callable[[Any, Any], Any] = "rbf",
    entries: float | None = None,
    ranks: int | None = None,
) -> Plan | ScalingPlan:
    """Choose how to fit n rows of d features with c outputs; or say what it costs on several devices.

    Parameters
    ----------
    n, d, c : int
    lams : number or array (L,)
        Regularisations; the smallest decides.
    steps : int, default 10
    device, memory, tol, method, operator, precision
        As in :func:`sdgpu.fit`; what is named is kept, what is "auto" is chosen.
    given : bool, default False
        Whether K is given (precomputed): it is dense then.
    kernel : Kernel, str or callable, default "rbf"
        As in :func:`sdgpu.fit`: Gaussians have a compiled loop.
    entries : number, optional
        Entries of a row that are not 0, in the mean, of sparse rows (X.nnz / n), taken to be spread evenly
        over the features; None for dense rows.
    ranks : int, optional
        Price the exact and the feature route on so many devices, which need not be here: `device` is then
        "h100", "h200", "a100" or "cpu" (:mod:`sdgpu.backend.device_classes`), or what is at hand, and
        `memory` that of each. Chosen are method, operator and precision; formulas in
        :mod:`sdgpu.engine.scaling_plan`.

    Returns
    -------
    Plan, or with `ranks` ScalingPlan

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, unknown names, or choices that exclude each other.
    MemoryError
        If nothing fits the memory.

    Examples
    --------
    >>> import sdgpu
    >>> sdgpu.plan(n=500, d=8, lams=[0.1], device="cpu").method
    'eigh'
    >>> far = sdgpu.plan(n=10**8, d=9, lams=1e4, device="h100", ranks=64, tol=1e-4)
    >>> far.exact.layout, far.features.seconds < far.seconds, far.efficiency <= 1
    ('ring', True, True)
    """
    if ranks is not None:
        left_open: dict[str, Any] = {
            "entries": entries,
            "method": method,
            "operator": operator,
            "precision": precision,
            "given": given,
        }
        return _on_ranks(
            n,
            d,
            c,
            lams,
            steps,
            ranks=ranks,
            device=device,
            memory=memory,
            tol=tol,
            asked=left_open,
        )
    if isinstance(device, str) and device in CLASSES and device != "cpu":
        raise ValueError(
            f"device={device!r} is a class of devices, for plans with ranks=: pass ranks=1 for one of them"
        )
    return decide(
        n,
        d,
        c,
        lams,
        steps,
        device=device,
        memory=memory,
        tol=tol,
        method=method,
        operator=operator,
        precision=precision,
        precomputed=given,
        kernel=kernel,
        entries=entries,
        measured=True,
    )


def _on_ranks(
    n: int,
    d: int,
    c: int,
    lams: Any,
    steps: int,
    *,
    ranks: int,
    device: str | Backend,
    memory: int | float | str | None,
    tol: float,
    asked: dict[str, Any],
) -> ScalingPlan:
    """The scaling plan, of a class of devices with the memory that may be used."""
    for name, value in asked.items():
        if value not in ("auto", None, False):
            raise ValueError(
                f"{name}={value!r} is for plans of the device at hand: with ranks={ranks!r} leave it out"
            )
    kind = _class_of(device)
    if memory is not None:
        kind = replace(kind, memory=budget(memory, "cpu"))
    return scaling_plan(n, d, c, lams, steps, ranks=ranks, device=kind, tol=tol)


def _class_of(device: str | Backend) -> DeviceClass:
    """The class that is named, or that of the device at hand."""
    if isinstance(device, str) and device in CLASSES:
        return device_class(device)
    backend = resolve(device)
    if "cuda" not in backend.name:
        return device_class("cpu")
    import torch

    product = torch.cuda.get_device_name(backend.device).lower()
    known = [name for name in CLASSES if name in product]
    if not known:
        raise ValueError(
            f"device={device!r} is a {product}, whose data sheet is not known: name the class that is most "
            f"like it, one of {', '.join(CLASSES)}"
        )
    return device_class(known[0])
