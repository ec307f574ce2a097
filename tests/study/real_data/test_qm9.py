"""The tables of QM9: a few molecules written here, and all of them where the package is installed."""

import importlib.util
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sdgpu.study.grid_study.cell_data import forget_data, split_of
from sdgpu.study.grid_study.configuration import DataTable
from sdgpu.study.real_data.datasets import load, split
from sdgpu.study.real_data.molecules import coulomb_matrices
from sdgpu.study.real_data.qm9 import ATOM_ENERGIES, HARTREE, PROPERTIES, numbers, read_qm9
from tests.test_foreign_files import Canary

HEAD = (
    "XYZ_file,Index,SMILES,Elements,XYZ_Ang,Dipole_debye,Polarizability_bohr3,HOMO_au,LUMO_au,"
    "HOMO_LUMO_gap_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,Heatcapacity_Cv_cal_mol_K"
)
#: As the package writes them, methane, water and hydrogen cyanide; a power of ten as Mathematica has it.
TABLES = [
    [
        """"a.xyz",1,"C","['C','H','H','H','H']","[[-0.0126981359,1.0858041578,0.0080009958],[0.002150416,"""
        """-0.0060313176,1.9761204*^-3],[1.0117308433,1.4637511618,0.0002765748],[-0.540815069,1.4475266138,"""
        """-0.8766437152],[-0.5238136345,1.4379326443,0.9063972942]]",0.,13.21,-0.3877,0.1171,0.5048,35.3641,"""
        """0.044749,-40.47893,6.469""",
        """"b.xyz",3,"O","['O','H','H']","[[-0.0343604951,0.9775395708,0.0076015923],[0.0647664923,"""
        """0.0205721989,1.5346341E-3],[0.8717903737,1.3007924048,0.0006931336]]",1.8511,6.31,-0.2928,0.0687,"""
        """0.3615,19.0002,0.021375,-76.404702,6.002""",
    ],
    [
        """"c.xyz",5,"C#N","['C','N','H']","[[-0.0133239314,1.1324657151,0.0082758861],[0.0023107217,"""
        """-0.0191585871,0.0019287305],[-0.0278026991,2.1989492963,0.0141537903]]",2.8937,12.99,-0.3604,"""
        """0.0191,0.3796,48.7476,0.016601,-93.411888,6.278"""
    ],
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package of the tables, which must not be imported; gives the paths of its tables."""
    folder = tmp_path / "qm9pack"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    paths = [folder / "data" / f"qm9_part{k + 1}.csv" for k in range(len(TABLES))]
    for path, lines in zip(paths, TABLES, strict=True):
        path.write_text("\n".join([HEAD, *lines]) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return paths


def test_molecules_and_properties(package):
    data = read_qm9(tuple(PROPERTIES))
    assert len(data) == 3
    expected = [[6, 1, 1, 1, 1], [8, 1, 1, 0, 0], [6, 7, 1, 0, 0]]
    assert_array_equal(data.molecules.charges, expected)
    assert_array_equal(data.molecules.positions[0, 1], [0.002150416, -0.0060313176, 1.9761204e-3])
    assert_array_equal(data.molecules.positions[1, 1], [0.0647664923, 0.0205721989, 1.5346341e-3])
    assert not data.molecules.positions[1:, 3:].any()
    atoms = ATOM_ENERGIES
    gained = [
        -40.47893 - atoms["C"] - 4 * atoms["H"],
        -76.404702 - atoms["O"] - 2 * atoms["H"],
        -93.411888 - atoms["C"] - atoms["N"] - atoms["H"],
    ]
    assert_allclose(data.properties["atomisation"], np.multiply(gained, HARTREE), rtol=1e-12)
    assert_allclose(data.properties["gap"], np.multiply([0.5048, 0.3615, 0.3796], HARTREE))
    assert_array_equal(data.properties["polarisability"], [13.21, 6.31, 12.99])
    assert_array_equal(data.properties["dipole"], [0, 1.8511, 2.8937])
    assert set(data.properties) == set(PROPERTIES)


def test_the_heat_that_methane_gives():
    """17.2 eV less zero point energy: 392 kcal/mol at 0 K, as tables of thermochemistry have it."""
    energy = (-40.47893 - ATOM_ENERGIES["C"] - 4 * ATOM_ENERGIES["H"]) * HARTREE
    assert abs(energy * 23.0605 + 392.5) < 5


def test_as_a_data_set(package):
    data = load("qm9")
    assert data.X.shape == (3, 15)
    assert data.Y.shape == (3, 1)
    table = read_qm9(("gap",))
    assert_array_equal(data.X, coulomb_matrices(table.molecules))
    some = load("qm9", "gap", rows=2, seed=1)
    places = [int(np.flatnonzero((row == data.X).all(axis=1))[0]) for row in some.X]
    assert_array_equal(some.Y[:, 0], table.properties["gap"][places])
    assert len(set(places)) == 2
    assert split(data, validation=0.34, test=0.34).X_train.shape == (1, 15)


def test_as_the_data_of_a_study(package):
    forget_data()
    table = DataTable(source="qm9", target="dipole", validation=0.34, test=0.34)
    assert not table.is_file
    assert not table.is_large
    parts = split_of(table, 0)
    assert parts.name == "qm9"
    assert (len(parts.X_train), len(parts.X_val), len(parts.X_test)) == (1, 1, 1)
    forget_data()


def test_names_that_are_none(package):
    with pytest.raises(ValueError, match="target='energy' is not known"):
        load("qm9", "energy")
    with pytest.raises(ValueError, match="name='gpa' is not known: did you mean 'gap'"):
        read_qm9(("gpa",))
    with pytest.raises(ValueError, match="classify"):
        load("qm9", classify=True)
    with pytest.raises(ValueError, match="rows=4"):
        load("qm9", rows=4)
    with pytest.raises(ValueError, match="is for tables of text"):
        load("qm9", encode=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("['C','N','H']", "['C','X','H']", "Elements hold 'X'"),
        ("['C','N','H']", "['C','N']", "9 coordinates for 2 atoms"),
        ("2.1989492963", "2.19.89492963", "something else"),
        ("2.1989492963", "nan", "NaN"),
        ("0.3796", "none", "something else"),
        ("0.3796", "", "cells that are no numbers"),
        ("XYZ_Ang", "XYZ", "is no table of qm9"),
    ],
)
def test_tables_that_are_broken(package, old, new, words):
    text = package[1].read_text()
    assert old in text
    package[1].write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=words):
        read_qm9(("gap",))


def test_a_pickle_in_place_of_a_table(package):
    package[0].write_bytes(pickle.dumps(Canary(package[0].parent / "alive")))
    with pytest.raises(ValueError, match=r"qm9_part1\.csv is no table of qm9"):
        read_qm9()
    assert not (package[0].parent / "alive").exists()


def test_no_tables(package):
    for path in package:
        path.unlink()
    with pytest.raises(ValueError, match="has no tables"):
        read_qm9()


def test_numbers():
    assert numbers(["[[1,-2.5],[3e-2,1.2*^-5]]", "[[.5,-0.]]"]).tolist() == [
        1,
        -2.5,
        0.03,
        1.2e-5,
        0.5,
        0,
    ]
    for text in ("[[1,x]]", "[[1 2]]", "[[1,,2]]"):
        with pytest.raises(ValueError, match="something else"):
            numbers([text])


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sdgpu\[chemistry\]'"):
        load("qm9")


@pytest.mark.skipif(importlib.util.find_spec("qm9pack") is None, reason="needs the extra chemistry")
def test_all_molecules():
    data = read_qm9(tuple(PROPERTIES))
    assert len(data) == 130_831
    assert data.molecules.charges.shape == (130_831, 29)
    assert set(np.unique(data.molecules.charges)) == {0, 1, 6, 7, 8, 9}
    heavy = (data.molecules.charges > 1).sum(axis=1)
    assert heavy.max() == 9
    assert_array_equal(data.molecules.charges[0, :6], [6, 1, 1, 1, 1, 0])
    # the gap is what lies between the orbitals, to the digits of the tables
    between = data.properties["lumo"] - data.properties["homo"]
    assert_allclose(data.properties["gap"], between, atol=2.1e-4 * HARTREE)
    energy = data.properties["atomisation"]
    assert -120 < energy.min() < energy.max() < -5
    triangles = coulomb_matrices(data.molecules.take(slice(0, None, 1000)))
    assert np.isfinite(triangles).all()
