"""Files of a study under damage: named, or made again from what is whole."""

import json

import numpy as np
import pytest

from sdgpu.study import open_study, run
from sdgpu.study.grid_study.study_folder import StudyFolder, read_cell, write_cells
from sdgpu.study.grid_study.study_results import read_results
from tests.damage import cut, damages, flipped, lengthened, zeroed
from tests.study.grid_study.test_running import numbers, tables

ALL = (flipped, cut, zeroed, lengthened)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run(tables(seeds=[0]), tmp_path_factory.mktemp("whole") / "study")


def test_a_cell_comes_back(study):
    record, arrays = read_cell(study.folder, study.records[0]["key"])
    assert record == study.records[0]
    write_cells(study.folder, [(record, arrays)])
    again = read_cell(study.folder, record["key"])[1]
    assert all(np.array_equal(again[name], arrays[name], equal_nan=True) for name in arrays)
    with pytest.raises(FileNotFoundError, match="it is not finished"):
        read_cell(study.folder, "another")
    path = study.folder / "cells" / "another.safetensors"
    path.write_bytes((study.folder / "cells" / f"{record['key']}.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"another\.safetensors is not the cell of its name"):
        read_cell(study.folder, "another")
    path.unlink()


def test_damaged_cells_are_named(study):
    key = study.records[0]["key"]
    path = study.folder / "cells" / f"{key}.safetensors"
    content, truth = path.read_bytes(), read_cell(study.folder, key)
    for broken in damages(content, 0, *ALL):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{key}\.safetensors is damaged"):
            read_cell(study.folder, key)
    with pytest.raises(ValueError, match=rf"{key}\.safetensors is damaged"):
        run(tables(seeds=[0]), study.folder)
    path.unlink()  # the remedy of the message
    again = run(tables(seeds=[0]), study.folder)
    assert numbers(again).identical(numbers(study))
    assert read_cell(study.folder, key)[0]["chosen"] == truth[0]["chosen"]


def test_damaged_lines_and_tables(study):
    keys = [record["key"] for record in study.records]
    lines, tables_file = study.folder / "cells.jsonl", study.folder / "study.json"
    folder, content = StudyFolder(study.folder), lines.read_bytes()
    truth = folder.records(keys)
    for broken in damages(content, 1, *ALL, times=200):
        lines.write_bytes(broken)
        found = folder.records(keys)
        assert {key: record["chosen"] for key, record in found.items()} == {
            key: record["chosen"] for key, record in truth.items()
        }
    lines.write_bytes(content)
    content, read = tables_file.read_bytes(), folder.read()
    for broken in damages(content, 2, *ALL):
        tables_file.write_bytes(broken)
        try:
            assert folder.read() == read  # white space
        except ValueError as error:
            assert "study.json is damaged" in str(error)  # noqa: PT017
    tables_file.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "is of format 99, this version reads 1: run the study anew"),
        ({"kind": "experiment of sdgpu"}, "is of something else than a study"),
        ({"tables": {"name": "test", "kernels": 3}}, "tables that this version does not know"),
    ],
)
def test_other_versions_are_named(study, tmp_path, changes, words):
    from sdgpu.backend.sealed_json import write_json

    fields = StudyFolder(study.folder).read() | changes
    (tmp_path / "cells").mkdir()
    write_json(tmp_path / "study.json", fields)
    with pytest.raises(ValueError, match=words):
        open_study(tmp_path)


def test_the_store_of_results_is_checked(study):
    values = study.folder / "results.zarr" / "mse" / "c" / "0" / "0" / "0" / "0"
    content = values.read_bytes()
    for broken in damages(content, 3, *ALL, times=40):
        values.write_bytes(broken)
        with pytest.raises(ValueError, match=r"results\.zarr is damaged: mse"):
            read_results(study.folder)
    values.write_bytes(content)
    assert read_results(study.folder).identical(open_study(study.folder).dataset)


def test_lines_are_json_for_others(study):
    for line in (study.folder / "cells.jsonl").read_text().splitlines():
        record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert {"key", "seed", "chosen", "versions", "device", "revision"} <= record.keys()
