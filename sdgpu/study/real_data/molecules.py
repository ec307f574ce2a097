"""Molecules as rows: Coulomb matrices, their eigenvalues, bags of bonds, and counts of atoms.

==========================  ==========  ==============================================================
function                    entries     of a molecule of N <= size atoms
==========================  ==========  ==============================================================
:func:`coulomb_matrices`    s(s+1) / 2  lower triangle of C, atoms by the norms of their rows
:func:`coulomb_spectra`     s           eigenvalues of C by their absolute values
:func:`bags_of_bonds`       data's own  entries of C by the elements they belong to, sorted
:func:`atom_counts`         elements    how many of each: the linear baseline
==========================  ==========  ==============================================================

With charges Z and positions R the Coulomb matrix is

    C_ii = Z_i^2.4 / 2,    C_ij = Z_i Z_j / |R_i - R_j|,

in hartree if R is in bohr; the package qml takes ångström as they are, and so do we. None of the four knows
where a molecule lies, how it is turned, or how its atoms are numbered: but where two atoms have rows of
the same norm, rounding decides which one comes first in the sorted matrix, as it does everywhere.

References
----------
Rupp, Tkatchenko, Müller and von Lilienfeld (2012), Physical Review Letters 108, 058301: the matrix and its
eigenvalues. Hansen et al. (2013), Journal of Chemical Theory and Computation 9, 3404: sorted rows and the
Laplacian kernel. Hansen et al. (2015), Journal of Physical Chemistry Letters 6, 2326: bags of bonds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sdgpu.backend.arrays import slices

__all__ = ["Molecules", "atom_counts", "bags_of_bonds", "coulomb_matrices", "coulomb_spectra"]

BLOCK = 1024  # molecules at a time: some 7 MB for each array of pairs
NEAREST = 1e-3  # two nuclei nearer than that [ångström] are a fault of the data


@dataclass(frozen=True, eq=False)
class Molecules:
    """Atoms of many molecules, each filled up with atoms of charge 0.

    Attributes
    ----------
    charges : int array (n, s)
        Z of each atom, 0 for none.
    positions : array (n, s, 3)
        [ångström]

    Raises
    ------
    ValueError
        For other shapes, negative charges, molecules without atoms, positions that are not finite, or two
        atoms of a molecule in one place (found when pairs are made).
    """

    charges: np.ndarray
    positions: np.ndarray

    def __post_init__(self) -> None:
        Z, R = self.charges, self.positions
        if Z.ndim != 2 or R.shape != (*Z.shape, 3):
            raise ValueError(
                f"charges must be (n, s) and positions (n, s, 3), got {Z.shape} and {R.shape}"
            )
        if not np.issubdtype(Z.dtype, np.integer) or (Z < 0).any():
            raise ValueError("charges must be whole numbers >= 0: nuclear charges, 0 for no atom")
        if not (Z > 0).any(axis=1).all():
            raise ValueError(f"molecule {int(np.argmin((Z > 0).any(axis=1)))} has no atoms")
        if not np.isfinite(R).all():
            raise ValueError("positions hold NaN or infinity")

    def __len__(self) -> int:
        return len(self.charges)

    def take(self, rows: np.ndarray | slice) -> Molecules:
        """Some of them."""
        return Molecules(self.charges[rows], self.positions[rows])


def coulomb_matrices(molecules: Molecules) -> np.ndarray:
    """Lower triangles of Coulomb matrices, atoms sorted by the norms of their rows, the largest first.

    Parameters
    ----------
    molecules : Molecules
        n, of up to s atoms.

    Returns
    -------
    array (n, s (s + 1) / 2)
        float64, row by row: C_11, C_21, C_22, ..; 435 for the 29 atoms of QM9. Atoms that are none come
        last, as zeros.

    Notes
    -----
    n s^2 operations, 8 bytes for each number of the result: QM9 takes seconds and 455 MB.
    """
    n, size = molecules.charges.shape
    rows, columns = np.tril_indices(size)
    triangles = np.empty((n, len(rows)))
    for part, C in _blocks(molecules):
        norms = np.einsum("nij,nij->ni", C, C)
        order = np.argsort(-norms, axis=1, kind="stable")
        one = np.arange(len(C))[:, None]
        triangles[part] = C[one, order[:, rows], order[:, columns]]
    return triangles


def coulomb_spectra(molecules: Molecules) -> np.ndarray:
    """Eigenvalues of Coulomb matrices, the largest absolute values first.

    Parameters
    ----------
    molecules : Molecules
        n, of up to s atoms.

    Returns
    -------
    array (n, s)
        float64. Atoms that are none add zeros.

    Notes
    -----
    n s^3 operations. Molecules that differ may share eigenvalues: s numbers for 3 s - 6 degrees of freedom.
    """
    spectra = np.empty(molecules.charges.shape)
    for part, C in _blocks(molecules):
        values = np.linalg.eigvalsh(C)
        order = np.argsort(-np.abs(values), axis=1, kind="stable")
        spectra[part] = np.take_along_axis(values, order, axis=1)
    return spectra


def bags_of_bonds(molecules: Molecules) -> np.ndarray:
    """Entries of Coulomb matrices in bags, one for each element and each pair of elements, sorted in each.

    A bag holds the Z_i Z_j / |R_i - R_j| of all pairs of two elements, the largest first, or the
    Z_i^2.4 / 2 of all atoms of one element, and is filled up with zeros to the size of the largest of all
    molecules. The bags of single atoms are those of the package qml.

    Parameters
    ----------
    molecules : Molecules
        n. Those to learn from and those to predict together: the sizes of the bags depend on them.

    Returns
    -------
    array (n, b)
        float64; bags of atoms by their charges, then those of pairs.

    Notes
    -----
    n s^2 log s operations.
    """
    elements = np.unique(molecules.charges)
    elements = elements[elements > 0]
    first, second = np.triu_indices(molecules.charges.shape[1], k=1)
    kinds = _kinds(len(elements))
    counts = np.concatenate(
        [_counts(codes, kinds.max() + 1) for codes in _codes(molecules, elements, kinds)]
    )
    sizes = counts.max(axis=0, initial=0)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    atoms = atom_counts(molecules)
    alone = [np.arange(k) < atoms[:, [i]] for i, k in enumerate(atoms.max(axis=0).astype(int))]
    self_energies = [mask * _self_energy(z) for mask, z in zip(alone, elements, strict=True)]
    bonds = np.zeros((len(molecules), starts[-1]))
    for (part, C), codes in zip(
        _blocks(molecules), _codes(molecules, elements, kinds), strict=True
    ):
        values = C[:, first, second]
        order = np.lexsort((-values, codes), axis=1)
        codes = np.take_along_axis(codes, order, axis=1)
        before = np.cumsum(counts[part], axis=1) - counts[part]
        row, place = np.nonzero(codes < len(sizes))
        code = codes[row, place]
        values = values[row, order[row, place]]
        bonds[part][row, starts[code] + place - before[row, code]] = values
    return np.concatenate([*self_energies, bonds], axis=1)


def atom_counts(molecules: Molecules) -> np.ndarray:
    """How many atoms of each element, (n, e) for the e elements that occur, by their charges; float64."""
    elements = np.unique(molecules.charges)
    columns = [(molecules.charges == z).sum(axis=1) for z in elements[elements > 0]]
    return np.stack(columns, axis=1).astype(np.float64)


def _self_energy(charges: np.ndarray) -> np.ndarray:
    return 0.5 * charges.astype(np.float64) ** 2.4


def _blocks(molecules: Molecules) -> Iterator[tuple[slice, np.ndarray]]:
    """Coulomb matrices (b, s, s) of so many molecules at a time."""
    for part in slices(len(molecules), BLOCK):
        Z, R = molecules.charges[part], molecules.positions[part]
        apart = R[:, :, None, :] - R[:, None, :, :]
        distances = np.sqrt(np.einsum("nijk,nijk->nij", apart, apart))
        products = Z[:, :, None].astype(np.float64) * Z[:, None, :]
        own = np.arange(Z.shape[1])
        products[:, own, own] = 0
        touching = (products > 0) & (distances < NEAREST)
        if touching.any():
            where = part.start + int(np.argmax(touching.any(axis=(1, 2))))
            raise ValueError(f"two atoms of molecule {where} lie in one place")
        C = np.divide(products, distances, out=np.zeros_like(products), where=products > 0)
        C[:, own, own] = _self_energy(Z)
        yield part, C


def _kinds(elements: int) -> np.ndarray:
    """A number for each pair of e elements, (e + 1, e + 1); pairs with no atom, which is 0, come last."""
    first, second = np.triu_indices(elements)
    kinds = np.full((elements + 1, elements + 1), len(first))
    kinds[first + 1, second + 1] = kinds[second + 1, first + 1] = np.arange(len(first))
    return kinds


def _codes(molecules: Molecules, elements: np.ndarray, kinds: np.ndarray) -> Iterator[np.ndarray]:
    """The kind of each pair of atoms, (b, s (s - 1) / 2), of so many molecules at a time."""
    first, second = np.triu_indices(molecules.charges.shape[1], k=1)
    for part in slices(len(molecules), BLOCK):
        numbers = np.searchsorted(elements, molecules.charges[part], side="right")
        yield kinds[numbers[:, first], numbers[:, second]]


def _counts(codes: np.ndarray, kinds: int) -> np.ndarray:
    """How many pairs of each kind but the last, (b, kinds - 1)."""
    flat = (codes + kinds * np.arange(len(codes))[:, None]).ravel()
    return np.bincount(flat, minlength=kinds * len(codes)).reshape(len(codes), kinds)[:, :-1]
