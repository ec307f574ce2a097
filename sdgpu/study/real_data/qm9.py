"""QM9: 130,831 molecules of up to nine atoms of C, N, O and F with their hydrogens, and their properties.

The tables of the package qm9pack are read where they lie, without importing it (extra ``chemistry``):
geometries and properties by density functional theory, B3LYP/6-31G(2df,p), of the molecules that passed
the consistency check of their authors.

References
----------
Ramakrishnan, Dral, Rupp and von Lilienfeld (2014), Scientific Data 1, 140022.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.checks import choice
from sdgpu.study.real_data.molecules import Molecules

__all__ = ["ATOM_ENERGIES", "HARTREE", "PROPERTIES", "QM9", "read_qm9"]

HARTREE = 27.211386245988  # eV, CODATA 2018
CHARGES = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}

#: U0 of single atoms [hartree], "Atomref" of the data set (https://doi.org/10.6084/m9.figshare.1057643).
ATOM_ENERGIES = {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730}

#: Properties: column of the tables, unit, and what a number of the column is in that unit.
PROPERTIES = {
    "atomisation": ("InternalEnergy_0K_au", "eV", HARTREE),  # less the energies of the atoms
    "gap": ("HOMO_LUMO_gap_au", "eV", HARTREE),
    "polarisability": ("Polarizability_bohr3", "bohr^3", 1.0),
    "dipole": ("Dipole_debye", "debye", 1.0),
    "homo": ("HOMO_au", "eV", HARTREE),
    "lumo": ("LUMO_au", "eV", HARTREE),
    "extent": ("R2_bohr2", "bohr^2", 1.0),
    "zero_point": ("ZPVE_au", "eV", HARTREE),
    "heat_capacity": ("Heatcapacity_Cv_cal_mol_K", "cal / (mol K)", 1.0),
}


@dataclass(frozen=True, eq=False)
class QM9:
    """The molecules, in the order of the data set.

    Attributes
    ----------
    molecules : Molecules
        n = 130,831 of up to 29 atoms, positions in ångström.
    properties : dict of arrays (n,)
        By the names of :data:`PROPERTIES`, in their units. "atomisation" is U0 less that of the molecule's
        atoms, :data:`ATOM_ENERGIES`: what is gained by building it, a negative number.
    """

    molecules: Molecules
    properties: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.molecules)


def read_qm9(names: tuple[str, ...] = ("atomisation", "gap", "polarisability")) -> QM9:
    """Read molecules and some of their properties.

    Parameters
    ----------
    names : tuple of str
        Of :data:`PROPERTIES`.

    Returns
    -------
    QM9

    Raises
    ------
    ImportError
        Without the package qm9pack, which has the tables.
    ValueError
        For an unknown name, or if a table is not what it was.

    Notes
    -----
    Text of 226 MB: some ten seconds, and 100 MB of arrays.
    """
    for name in names:
        choice("name", name, tuple(PROPERTIES))
    spec = importlib.util.find_spec("qm9pack")  # its import needs pkg_resources, which is gone
    if spec is None or spec.origin is None:
        raise ImportError("qm9 needs the package qm9pack: pip install 'sdgpu[chemistry]'")
    paths = sorted((Path(spec.origin).parent / "data").glob("qm9_part*.csv"))
    if not paths:
        raise ValueError(f"qm9pack at {Path(spec.origin).parent} has no tables data/qm9_part*.csv")
    parts = [_read(path, names) for path in paths]
    size = max(len(part.molecules.charges[0]) for part in parts)
    molecules = Molecules(
        np.concatenate([_padded(part.molecules.charges, size) for part in parts]),
        np.concatenate([_padded(part.molecules.positions, size) for part in parts]),
    )
    properties = {name: np.concatenate([part.properties[name] for part in parts]) for name in names}
    return QM9(molecules, properties)


def _read(path: Path, names: tuple[str, ...]) -> QM9:
    """The molecules of one table."""
    import pandas as pd

    columns = dict.fromkeys(PROPERTIES[name][0] for name in names)
    try:
        table = pd.read_csv(path, usecols=["Elements", "XYZ_Ang", *columns])
        charges, counts = _elements(table["Elements"].tolist())
        positions = numbers(table["XYZ_Ang"].tolist())
        if len(positions) != 3 * len(charges):
            raise ValueError(f"{len(positions)} coordinates for {len(charges)} atoms")
        values = {name: _property(table[PROPERTIES[name][0]], name) for name in names}
    except (ValueError, TypeError) as error:  # pandas' own errors of text that is no table too
        raise ValueError(f"{path} is no table of qm9: {error}") from error
    molecules = Molecules(_rows(charges, counts), _rows(positions.reshape(-1, 3), counts))
    if "atomisation" in names:
        energies = np.zeros(256)
        energies[[CHARGES[element] for element in ATOM_ENERGIES]] = list(ATOM_ENERGIES.values())
        values["atomisation"] -= energies[molecules.charges].sum(axis=1) * HARTREE
    return QM9(molecules, values)


def _property(column: Any, name: str) -> np.ndarray:
    values = numbers(column.tolist()) if column.dtype.kind not in "fi" else column.to_numpy()
    if len(values) != len(column) or not np.isfinite(values).all():
        raise ValueError(f"{column.name} holds cells that are no numbers")
    return values.astype(np.float64) * PROPERTIES[name][2]


def _elements(cells: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Charges of all atoms, and how many each molecule has, of cells such as ['C','H']."""
    letters = np.frombuffer("\n".join(["", *cells]).encode(), dtype=np.uint8)
    known = np.zeros(256, dtype=np.uint8)
    for element, charge in CHARGES.items():
        known[ord(element)] = charge
    charges = known[letters]
    harmless = np.isin(letters, np.frombuffer(b"[]', \n", dtype=np.uint8))
    if not (harmless | (charges > 0)).all():
        strange = chr(letters[np.argmin(harmless | (charges > 0))])
        raise ValueError(f"Elements hold {strange!r}, which is none of {', '.join(CHARGES)}")
    starts = np.flatnonzero(letters == ord("\n"))
    return charges[charges > 0], np.add.reduceat((charges > 0).astype(np.int64), starts)


def numbers(cells: list[str]) -> np.ndarray:
    """All numbers of cells such as [[0.1,-2.],[1.2*^-5,3e-6]], Mathematica's powers of ten among them.

    Raises
    ------
    ValueError
        If there is anything else.
    """
    text = ",".join(cells).replace("[", "").replace("]", "").replace("*^", "e")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, sep=",")
        except (DeprecationWarning, ValueError):  # the first one before NumPy made it an error
            raise ValueError("a list of numbers holds something else") from None


def _rows(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """So many values for each molecule, side by side, filled up with zeros."""
    rows = np.zeros((len(counts), counts.max(initial=0), *values.shape[1:]), dtype=values.dtype)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = values
    return rows


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    wider = np.zeros((len(rows), size, *rows.shape[2:]), dtype=rows.dtype)
    wider[:, : rows.shape[1]] = rows
    return wider
