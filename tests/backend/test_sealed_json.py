"""Objects of JSON with checksums: damage is named, a torn line is dropped."""

import math

import pytest

from sdgpu.backend.sealed_json import plain, read_json, read_line, sealed_line, write_json
from tests.damage import cut, damages, flipped, lengthened, zeroed


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "some.json"
    fields = {"owner": {"lr": 0.1, "images": "xyz"}, "rows": [{"step": 1, "alpha": None}] * 3}
    write_json(path, fields)
    assert read_json(path) == fields
    content = path.read_bytes()
    silent = 0
    for broken in damages(content, 1, flipped, cut, zeroed, lengthened):
        path.write_bytes(broken)
        try:
            found = read_json(path)
        except ValueError as error:
            assert "some.json is damaged" in str(error)  # noqa: PT017
        else:
            silent += 1
            assert found == fields  # white space
    assert silent < 50
    for text in ("[" * 100_000, '{"checksum": 3}', "{}", "[]", "", "\0"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"some\.json is damaged"):
            read_json(path)


def test_damaged_lines_are_none():
    fields = {"key": "a", "chosen": {"ridge": {"lam": 0.25, "note": "\u00e9"}}, "seed": 3}
    line = sealed_line(fields)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert read_line(line) == fields
    for broken in damages(line.encode(), 2, flipped, cut, zeroed, lengthened):
        found = read_line(broken.decode(errors="replace"))
        assert found is None or found == fields  # white space
    for text in ("[" * 100_000, '{"checksum": 3}', "{}", "[]", "", "\0", line[:-20]):
        assert read_line(text) is None


def test_plain_values():
    found = plain({"a": (1, math.nan, [math.inf, -math.inf]), 2: "b"})
    assert found == {"a": [1, None, ["inf", "-inf"]], "2": "b"}
