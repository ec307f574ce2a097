"""What a worker sends of its moments: few eigenpairs, and where the targets lie.

With the centred moments G = Phi'W Phi - s s'/W and B of a worker, V the eigenvectors of the r largest
eigenvalues of G and R an orthonormal basis of what they do not hold of B, the message is G and B in
Q = [V, R]. B is whole, G is Q Q'G Q Q', and as Q holds both these are the moments of real rows: those of
the worker, each projected on Q. What is cut off is E = G - Q Q'G Q Q'. It is 0 on V, and

    ||E beta|| <= ||(1 - Q Q') G R|| ||R'beta|| + delta_(r+1) ||(1 - Q Q') beta||,

two numbers of the worker and coefficients that the server knows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sdgpu.backend.checks import integer, number, positive
from sdgpu.backend.sealed_tensors import fault_in_words, read_tensors, tensor_path, write_tensors
from sdgpu.backend.storage import check_writable
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["LocalSpectrum", "open_spectrum"]

FORMAT = 1
_ARRAYS = ["eigenvalues", "basis", "cross", "feature_sum", "target_sum", "target_squares", "offset"]


@dataclass(frozen=True, eq=False)
class LocalSpectrum:
    """A message: r eigenpairs, sums of k numbers, and no row.

    Made by :meth:`sdgpu.federated.FeatureSpace.spectrum`.

    Attributes
    ----------
    fingerprint : str
        Of the kernel and the features.
    eigenvalues : array (p,)
        Of G in Q, descending; the first r are the largest of G.
    basis : array (k, p)
        Their vectors, orthonormal; p <= r + c.
    cross : array (p, c)
        Q'B.
    feature_sum, target_sum, target_squares, offset : array (k,), (c,), (c,), (c,)
        s, t, q and y0 of :mod:`sdgpu.solvers.moment_sums`.
    rank : int
        r.
    left_out : float
        delta_(r+1), the largest eigenvalue that was cut off; 0 if none.
    coupling : float
        ||(1 - Q Q') G R||.
    weight : float
    rows : int
    """

    fingerprint: str
    eigenvalues: np.ndarray
    basis: np.ndarray
    cross: np.ndarray
    feature_sum: np.ndarray
    target_sum: np.ndarray
    target_squares: np.ndarray
    offset: np.ndarray
    rank: int
    left_out: float
    coupling: float
    weight: float
    rows: int

    @classmethod
    def of(cls, sums: MomentSums, fingerprint: str, rank: int | None) -> LocalSpectrum:
        """The `rank` largest eigenpairs of some moments; all above rounding for None.

        Raises
        ------
        ValueError
            Without rows, and for moments of float32 features, whose audit would be lost.

        Notes
        -----
        About 9 k^3 operations.
        """
        if not sums.weight > 0:
            raise ValueError("a spectrum of no rows: add some")
        if sums.audited:
            raise ValueError(
                "these moments are of float32 features, and what was audited would be lost: make them with "
                "dtype='float64', or send the moments"
            )
        G, B, _ = sums.centred(intercept=True)
        delta, V = np.linalg.eigh((G + G.T) / 2)
        delta, V = np.maximum(delta[::-1], 0.0), V[:, ::-1]
        # rounding of the uncentred sums: nothing below it is known
        floor = len(G) * np.finfo(float).eps * float(np.trace(sums.gram))
        known = int(np.count_nonzero(delta > floor))
        r = known if rank is None else min(integer("rank", rank, 1), known)
        Q, values, coupling = V[:, :r], delta[:r], 0.0
        if r < known:  # the targets in the other eigenvectors, whose images stay there
            tail, small = V[:, r:known], delta[r:known]
            R = _orthonormal(tail.T @ B)
            T = R.T @ (small[:, None] * R)
            outside = small[:, None] * R - R @ T
            coupling = float(np.linalg.norm(outside, 2)) if R.shape[1] else 0.0
            ritz, turn = np.linalg.eigh(T)
            Q = np.concatenate([Q, tail @ (R @ turn[:, ::-1])], axis=1)
            values = np.concatenate([values, np.maximum(ritz[::-1], 0.0)])
        return cls(
            fingerprint=fingerprint,
            eigenvalues=values,
            basis=Q,
            cross=Q.T @ B,
            feature_sum=sums.feature_sum.copy(),
            target_sum=sums.target_sum.copy(),
            target_squares=sums.target_squares.copy(),
            offset=sums.offset.copy(),
            rank=r,
            left_out=float(delta[r]) if r < known else 0.0,
            coupling=coupling,
            weight=sums.weight,
            rows=sums.rows,
        )

    @property
    def nbytes(self) -> int:
        """Of the numbers that are sent: 8 (p (k + c + 1) + k + 3 c) and a few more."""
        arrays = sum(getattr(self, name).nbytes for name in _ARRAYS)
        return int(arrays + 8 * (len(fields(self)) - len(_ARRAYS) - 1) + len(self.fingerprint))

    def sums(self) -> MomentSums:
        """The moments of the worker's rows projected on Q: they add up as others do."""
        s, Q = self.feature_sum, self.basis
        gram = (Q * self.eigenvalues) @ Q.T + np.outer(s, s / self.weight)
        cross = Q @ self.cross + np.outer(s, self.target_sum / self.weight)
        return MomentSums(
            offset=self.offset.copy(),
            gram=gram,
            cross=cross,
            feature_sum=s.copy(),
            target_sum=self.target_sum.copy(),
            target_squares=self.target_squares.copy(),
            weight=self.weight,
            rows=self.rows,
        )

    def missing(self, beta: np.ndarray) -> np.ndarray:
        """A bound on ||E beta|| of coefficients (.., k, c), (.., c)."""
        inside = self.basis.T @ beta
        outside = np.linalg.norm(beta - self.basis @ inside, axis=-2)
        coupled = np.linalg.norm(inside[..., self.rank :, :], axis=-2)
        return np.asarray(self.coupling * coupled + self.left_out * outside)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the message to a ``.safetensors`` file, whole or not at all, with a checksum.

        Raises
        ------
        OSError
            If the folder cannot be written, or the disk is full.
        """
        target = tensor_path(path)
        check_writable(target)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        numbers = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name not in _ARRAYS
        }
        write_tensors(target, arrays, {"spectrum": FORMAT, **numbers})


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """A basis (m, p) of the span of columns (m, c), without directions that are rounding."""
    scale = np.linalg.norm(columns, axis=0)
    columns = columns[:, scale > 0] / scale[scale > 0]
    U, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return U[:, sizes > len(columns) * np.finfo(float).eps * sizes.max(initial=0.0)]


def open_spectrum(path: str | os.PathLike[str]) -> LocalSpectrum:
    """A message out of a file of :meth:`LocalSpectrum.save`; nothing in it is executed.

    Raises
    ------
    FileNotFoundError, OSError
        If there is none, or it may not be read.
    ValueError
        If it is damaged, or holds something else: names the file.
    """
    source = tensor_path(path)
    arrays, metadata = read_tensors(source, "spectrum")
    try:
        if metadata["spectrum"] != FORMAT:
            raise ValueError(f"it is of version {metadata['spectrum']!r}, not {FORMAT}")
        return _restored(arrays, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} holds no spectrum: {fault_in_words(error)}") from error


def _restored(arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> LocalSpectrum:
    """Checked: who sent it may be anyone."""
    own = {name: arrays[name].copy() for name in _ARRAYS}
    k, p, c = len(own["feature_sum"]), len(own["eigenvalues"]), len(own["offset"])
    shapes = {"eigenvalues": (p,), "basis": (k, p), "cross": (p, c), "feature_sum": (k,)}
    for name, array in own.items():
        if array.shape != shapes.get(name, (c,)) or array.dtype != np.float64:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if (own["eigenvalues"] < 0).any() or (own["target_squares"] < 0).any():
        raise ValueError("eigenvalues and squares are not below 0")
    Q = own["basis"]
    if np.abs(Q.T @ Q - np.eye(p)).max(initial=0.0) > 1e-8:
        raise ValueError("its vectors are not orthonormal")
    rank, rows = integer("rank", metadata["rank"], 0), integer("rows", metadata["rows"], 1)
    if rank > p:
        raise ValueError(f"rank {rank} of {p} eigenvalues")
    if not isinstance(metadata["fingerprint"], str):
        raise TypeError("its fingerprint is no text")
    return LocalSpectrum(
        fingerprint=metadata["fingerprint"],
        **own,
        rank=rank,
        left_out=positive("left_out", metadata["left_out"], zero=True),
        coupling=positive("coupling", metadata["coupling"], zero=True),
        weight=positive("weight", number("weight", metadata["weight"])),
        rows=rows,
    )
