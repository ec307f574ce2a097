"""Representations of molecules against loops that say what they are, and what they must not know."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sdgpu.study.real_data import molecules as module
from sdgpu.study.real_data.molecules import (
    Molecules,
    atom_counts,
    bags_of_bonds,
    coulomb_matrices,
    coulomb_spectra,
)
from tests.problems import assert_near

REPRESENTATIONS = [coulomb_matrices, coulomb_spectra, bags_of_bonds, atom_counts]
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.629
KNOWN = [
    ([8, 1, 1], [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]),  # water
    ([6, 1, 1, 1, 1], [[0, 0, 0], *TETRAHEDRON]),  # methane
    ([6, 7, 1], [[0, 0, 0], [0, 0, 1.157], [0, 0, -1.066]]),
    ([9], [[3.0, 2.0, 1.0]]),  # one atom
]


def filled(atoms, size=None):
    """Molecules of lists of charges and positions."""
    size = size or max(len(Z) for Z, _ in atoms)
    charges, positions = np.zeros((len(atoms), size), dtype=int), np.zeros((len(atoms), size, 3))
    for i, (Z, R) in enumerate(atoms):
        charges[i, : len(Z)], positions[i, : len(Z)] = Z, R
    return Molecules(charges, positions)


def drawn(rng, count=30, size=9):
    """Molecules without any symmetry, so that no two rows have a norm in common."""
    atoms = []
    for _ in range(count):
        k = int(rng.integers(1, size + 1))
        grid = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
        places = grid[rng.permutation(len(grid))[:k]] + 0.3 * rng.random((k, 3))
        atoms.append((rng.choice([1, 6, 7, 8, 9], k), places))
    return atoms


def matrix(Z, R):
    """The Coulomb matrix of one molecule, entry by entry."""
    C = np.empty((len(Z), len(Z)))
    for i in range(len(Z)):
        for j in range(len(Z)):
            if i == j:
                C[i, i] = 0.5 * float(Z[i]) ** 2.4
            else:
                squares = sum((float(R[i][k]) - float(R[j][k])) ** 2 for k in range(3))
                C[i, j] = float(Z[i]) * float(Z[j]) / squares**0.5
    return C


def reference(name, atoms, size):
    """Rows of a representation by loops."""
    if name == "atom_counts":
        elements = sorted({int(z) for Z, _ in atoms for z in Z})
        return np.array([[list(Z).count(e) for e in elements] for Z, _ in atoms])
    if name == "bags_of_bonds":
        return bags(atoms)
    rows = []
    for Z, R in atoms:
        C = matrix(Z, R)
        if name == "coulomb_spectra":
            values = sorted(np.linalg.eigvalsh(C), key=lambda value: -abs(value))
            rows.append(values + [0.0] * (size - len(Z)))
            continue
        order = sorted(range(len(Z)), key=lambda i: -float(np.linalg.norm(C[i])))
        row = [C[order[i], order[j]] for i in range(len(Z)) for j in range(i + 1)]
        rows.append(row + [0.0] * (size * (size + 1) // 2 - len(row)))
    return np.array(rows)


def bags(atoms):
    elements = sorted({int(z) for Z, _ in atoms for z in Z})
    keys = [(e,) for e in elements]
    keys += [(a, b) for i, a in enumerate(elements) for b in elements[i:]]
    filled_bags = []
    for Z, R in atoms:
        C, found = matrix(Z, R), {key: [] for key in keys}
        for i in range(len(Z)):
            found[(int(Z[i]),)].append(C[i, i])
            for j in range(i):
                found[tuple(sorted((int(Z[i]), int(Z[j]))))].append(C[i, j])
        filled_bags.append(found)
    sizes = {key: max(len(found[key]) for found in filled_bags) for key in keys}
    return np.array(
        [
            [
                v
                for key in keys
                for v in (sorted(f[key], reverse=True) + [0.0] * sizes[key])[: sizes[key]]
            ]
            for f in filled_bags
        ]
    )


@pytest.mark.parametrize("make", REPRESENTATIONS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_representations_are_what_they_say(make, block, rng, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    atoms = drawn(rng)
    found = make(filled(atoms))
    assert found.dtype == np.float64
    assert_near(found, reference(make.__name__, atoms, 9), rtol=1e-13)


@pytest.mark.parametrize("make", REPRESENTATIONS, ids=lambda make: make.__name__)
def test_known_molecules(make):
    assert_near(make(filled(KNOWN)), reference(make.__name__, KNOWN, 5), rtol=1e-13)


def test_water_by_hand():
    """Two bonds of 0.9697 angstrom, the hydrogens 1.526 apart."""
    bond, apart = np.hypot(0.763, 0.596), 1.526
    row = [0.5 * 8**2.4, 8 / bond, 0.5, 8 / bond, 1 / apart, 0.5]
    assert_allclose(coulomb_matrices(filled(KNOWN[:1]))[0], row, rtol=1e-14)
    in_bags = [0.5, 0.5, 0.5 * 8**2.4, 1 / apart, 8 / bond, 8 / bond]
    assert_allclose(bags_of_bonds(filled(KNOWN[:1]))[0], in_bags, rtol=1e-14)
    assert_array_equal(atom_counts(filled(KNOWN[:1])), [[2, 1]])


@pytest.mark.parametrize("make", REPRESENTATIONS, ids=lambda make: make.__name__)
def test_numbering_place_and_turn_do_not_matter(make, rng):
    atoms = drawn(rng)
    other = []
    for Z, R in atoms:
        order = rng.permutation(len(Z))
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))  # mirror images too
        other.append((np.asarray(Z)[order], R[order] @ turn + 5 * rng.standard_normal(3)))
    assert_near(make(filled(other)), make(filled(atoms)), rtol=1e-12)


@pytest.mark.parametrize("make", [coulomb_spectra, bags_of_bonds, atom_counts])
def test_equal_atoms_do_not_matter_to_what_is_no_order_of_atoms(make, rng):
    """Ethylene has four equal hydrogens, whose order in a sorted matrix is a matter of rounding."""
    Z = np.array([6, 6, 1, 1, 1, 1])
    x, y = 1.238, 0.924
    R = np.array([[0.667, 0, 0], [-0.667, 0, 0], [x, y, 0], [x, -y, 0], [-x, y, 0], [-x, -y, 0]])
    first = make(filled([(Z, R)]))
    for _ in range(10):
        order = rng.permutation(6)
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        assert_near(make(filled([(Z[order], R[order] @ turn)])), first, rtol=1e-13)


@pytest.mark.parametrize("make", REPRESENTATIONS, ids=lambda make: make.__name__)
def test_atoms_that_are_none_do_not_matter(make):
    found, wider = make(filled(KNOWN)), make(filled(KNOWN, size=8))
    assert_near(wider[:, : found.shape[1]], found, rtol=1e-13)
    assert not wider[:, found.shape[1] :].any()


def test_sizes_of_qm9():
    Z = np.ones((1, 29), dtype=int)
    R = np.arange(87.0).reshape(1, 29, 3)
    assert coulomb_matrices(Molecules(Z, R)).shape == (1, 435)
    assert coulomb_spectra(Molecules(Z, R)).shape == (1, 29)
    assert bags_of_bonds(Molecules(Z, R)).shape == (1, 435)


def test_some_of_them(rng):
    atoms = drawn(rng)
    every = filled(atoms)
    assert len(every.take(np.array([4, 2]))) == 2
    some = coulomb_matrices(every.take(np.array([4, 2])))
    assert_array_equal(some, coulomb_matrices(every)[[4, 2]])


@pytest.mark.parametrize(
    ("charges", "positions", "words"),
    [
        (np.ones(3, dtype=int), np.zeros((3, 3)), r"charges must be \(n, s\)"),
        (np.ones((1, 2), dtype=int), np.zeros((1, 2)), r"charges must be \(n, s\)"),
        (np.ones((1, 2)), np.zeros((1, 2, 3)), "whole numbers"),
        (-np.ones((1, 2), dtype=int), np.zeros((1, 2, 3)), "whole numbers"),
        (np.array([[1], [0]]), np.zeros((2, 1, 3)), "molecule 1 has no atoms"),
        (np.ones((1, 1), dtype=int), np.full((1, 1, 3), np.nan), "NaN"),
    ],
)
def test_what_are_no_molecules(charges, positions, words):
    with pytest.raises(ValueError, match=words):
        Molecules(charges, positions)


def test_two_atoms_in_one_place():
    broken = filled([*KNOWN, ([1, 1], [[0, 0, 0], [0, 0, 0]])])
    for make in (coulomb_matrices, coulomb_spectra, bags_of_bonds):
        with pytest.raises(ValueError, match="two atoms of molecule 4"):
            make(broken)
