"""Tables of text as others write them: every dialect comes back bit for bit, and doubt is an error."""

import bz2
import gzip
import lzma
import os
import pickle
import re
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdgpu.backend.rows.source import RowSource, checked_blocks
from sdgpu.backend.rows.text_dialect import TextDialect
from sdgpu.backend.rows.text_layout import CELLS
from sdgpu.backend.rows.text_lines import is_text_table, table_name
from sdgpu.backend.rows.text_survey import CATEGORIES, SURVEYED
from sdgpu.backend.rows.text_tables import open_table

SEPARATORS = [",", ";", "\t", "|", " "]


@pytest.fixture
def write(tmp_path):
    """Write a text into a file and give its path."""

    def make(text, name="t.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return make


def matrix(table, rows=7):
    """All of X and Y side by side."""
    blocks = list(table.blocks(rows))
    parts = ("X", "Y") if table.c else ("X",)
    return np.hstack([np.concatenate([getattr(block, part) for block in blocks]) for part in parts])


def typed(values, separator, decimal=".", *, names=None, quoted=False, end="\n"):
    """A matrix of floats as text."""
    rows = [[repr(float(value)).replace(".", decimal) for value in row] for row in values]
    names = names or [f"col{j}" for j in range(len(values[0]))]
    if quoted:
        rows = [[f'"{cell}"' for cell in row] for row in rows]
    return end.join(separator.join(row) for row in [names, *rows]) + end


@st.composite
def matrices(draw):
    n, width = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    short = st.integers(-(10**6), 10**6).map(lambda i: i / 1000)
    rows = st.lists(st.one_of(numbers, short), min_size=width, max_size=width)
    return np.array(draw(st.lists(rows, min_size=n, max_size=n)))


@st.composite
def dialects(draw):
    separator = draw(st.sampled_from(SEPARATORS))
    decimal = draw(st.sampled_from([".", ","]))
    quoted = draw(st.booleans()) or separator == decimal
    return separator, decimal, quoted


@given(
    values=matrices(),
    dialect=dialects(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    rows=st.integers(1, 8),
)
def test_any_floats_in_any_dialect_come_back_bit_for_bit(
    tmp_path_factory, values, dialect, end, mark, rows
):
    separator, decimal, quoted = dialect
    path = tmp_path_factory.getbasetemp() / "dialect.csv"
    path.write_bytes(mark + typed(values, separator, decimal, quoted=quoted, end=end).encode())
    named = open_table(path, separator=separator, decimal=decimal, header=True)
    assert matrix(named, rows).tobytes() == values.tobytes()
    assert named.n == len(values)
    # cells like 1,234 alone may be thousands
    texts = [repr(value) for value in values.ravel().tolist()]
    if decimal == "," and all(map(re.compile(r"-?[1-9]\d{0,2}\.\d{3}").fullmatch, texts)):
        with pytest.raises(ValueError, match="pass decimal=',' or thousands=','"):
            open_table(path)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cells like 1.234
        table = open_table(path)
    assert (table.layout.dialect.separator, table.layout.dialect.header) == (separator, True)
    assert matrix(table, rows).tobytes() == values.tobytes()


@given(
    values=matrices(),
    style=st.sampled_from([(",", "."), (".", ","), (" ", "."), (" ", ","), ("'", ".")]),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    blank=st.sampled_from([" ", "\u00a0", "\u202f"]),
)
def test_thousands_in_any_country(tmp_path_factory, values, style, separator, blank):
    values = np.round(np.clip(values, -1e9, 1e9), 2)
    values[0, 0] = 1234567.25  # so that it can be seen
    thousands, decimal = style
    swap = str.maketrans({",": thousands.replace(" ", blank), ".": decimal})
    rows = [[f'"{value:,.2f}"'.translate(swap) for value in row] for row in values]
    names = [f"col{j}" for j in range(len(rows[0]))]
    text = "\n".join(separator.join(row) for row in [names, *rows])
    path = tmp_path_factory.getbasetemp() / "thousands.csv"
    path.write_bytes(text.encode())
    table = open_table(path)
    assert table.layout.dialect == TextDialect(separator, decimal, thousands)
    wanted = [[float(f"{value:.2f}") for value in row] for row in values]
    assert matrix(table).tobytes() == np.array(wanted).tobytes()


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".txt"])
def test_packed_files(write, rng, ending, kind):
    values = rng.standard_normal((50, 3))
    text = typed(values, "\t" if kind == ".tsv" else ",").encode()
    if ending == ".zst":
        packed = pytest.importorskip("pyarrow").Codec("zstd").compress(text, asbytes=True)
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        packed = pack[ending](text)
    path = write(packed, f"many.rows{kind}{ending}")
    assert is_text_table(path)
    assert table_name(path) == "many.rows"
    assert (matrix(open_table(path)) == values).all()
    if ending:
        cut = write(packed[:-9], f"cut{kind}{ending}")
        with pytest.raises(ValueError, match=rf"cut{kind}{ending} is damaged"):
            matrix(open_table(cut))
        other = write(b"not packed at all", f"other{kind}{ending}")
        with pytest.raises(
            ValueError, match=rf"other{kind}{ending} is damaged, or no {ending} file"
        ):
            open_table(other)


def test_a_late_cut_is_found_as_the_rows_are_read(write, rng):
    packed = gzip.compress(typed(rng.standard_normal((SURVEYED * 4, 3)), ",").encode())
    table = open_table(write(packed[:-9], "cut.csv.gz"))
    assert table.n is None
    with pytest.raises(ValueError, match=r"cut\.csv\.gz is damaged or cut off after line [\d,]+"):
        matrix(table)


def test_zst_needs_pyarrow(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'sdgpu\[cluster\]'"):
        open_table(write(b"", "t.csv.zst"))


def test_a_source_of_rows(write):
    table = open_table(write("a,b,y\n" + "1,2,3\n" * 10), "y")
    assert isinstance(table, RowSource)
    assert (table.d, table.c, table.n, table.dtype, table.rereadable) == (2, 1, 10, "float64", True)
    assert (table.columns, table.outputs, table.classes) == (("a", "b"), ("y",), ())
    assert [len(block.X) for block in table.blocks(4)] == [4, 4, 2]
    assert [start for start, _ in checked_blocks(table, 3)] == [0, 3, 6, 9]
    places = [block.place.split("t.csv, ")[1] for block in table.blocks(4)]
    assert places == ["line 2 (row 0)", "line 6 (row 4)", "line 10 (row 8)"]
    assert repr(pickle.loads(pickle.dumps(table))) == repr(table)
    with pytest.raises(ValueError, match="rows=0"):
        next(table.blocks(0))


def test_columns_by_name(write):
    path = write("a,b,c,y\n1,2,3,4\n5,6,7,8\n")
    assert open_table(path).outputs == ("y",)
    table = open_table(path, ["c", "a"], features=["y"])
    assert (table.columns, table.outputs) == (("y",), ("c", "a"))
    assert matrix(table).tolist() == [[4, 3, 1], [8, 7, 5]]
    nothing = open_table(path, [])
    assert (nothing.c, nothing.outputs, nothing.d) == (0, None, 4)
    assert next(nothing.blocks(9)).Y is None
    for change, words in (
        ({"target": "z"}, "target='z' is no column of"),
        ({"features": ["y"]}, "'y' of .* is in features and in target"),
        ({"target": ["a", "a"]}, "target names the column 'a' of .* twice"),
        ({"target": ["a", "b", "c", "y"]}, "no column left for features"),
        ({"target": ["a", "b"], "classify": True}, "classify=True needs one target, not 2"),
    ):
        with pytest.raises(ValueError, match=words):
            open_table(path, **change)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a,b\n1.5,2\n", [[1.5, 2]]),
        ("a;b\n1,5;2\n", [[1.5, 2]]),
        ("a\tb\n1,5\t2\n", [[1.5, 2]]),
        ("a|b\n1.5|2\n", [[1.5, 2]]),
        ("  a   b\n 1.5 \t 2  \n", [[1.5, 2]]),
        ("a b\n1,5 2,5\n3 4\n", [[1.5, 2.5], [3, 4]]),
        ('a,b\n"1,234.5",2\n', [[1234.5, 2]]),
        ("a;b\n1.234,5;2\n", [[1234.5, 2]]),
        ("a;b\n1 234;2\n", [[1234, 2]]),
        ("a;b\n1'234;2\n", [[1234, 2]]),
        ("a;b\n1\u2019234,5;2\n", [[1234.5, 2]]),
        ("a;b\n1,234,567;2\n1,234;5\n", [[1234567, 2], [1234, 5]]),
        ("a;b\n1.234;2,5\n", [[1234, 2.5]]),  # the other column tells
        ("a;b\n1,234;2.5\n", [[1234, 2.5]]),
        ("a,b\n1.234,2\n", [[1.234, 2]]),
        ('a,b\n"1,5","2,5"\n', [[1.5, 2.5]]),
        ('"a";"b"\r\n"1";"2"\r\n', [[1, 2]]),
        ('"a\nb",c\n1,2\n', [[1, 2]]),
        ("\ufeffa,b\n1,2\n", [[1, 2]]),
        ("\n\n# by hand\n\na,b\n\n1,2\n   \n\n3,4\n\n", [[1, 2], [3, 4]]),
        ('# a, b,"c\na,b\n1,2\n# note\n3,4\n#\n', [[1, 2], [3, 4]]),
        ("#,b\n1,2\n2,3\n", [[1, 2], [2, 3]]),
        ("a, b\n1, 2\n", [[1, 2]]),
        ("a,b\n1,2", [[1, 2]]),
        ("a,b\n7,1\n7,2\n", [[7, 1], [7, 2]]),  # constant
        ("a,b\n+1,-2e-3\n.5,5.\n", [[1, -2e-3], [0.5, 5]]),
        ("a,b\n123456789012345678901234567890,2\n", [[123456789012345678901234567890.0, 2]]),
        ("a,b\ntrue,1\nFalse,2\n", [[1, 1], [0, 2]]),
        ("a,b\nno,1\nYes,2\n", [[0, 1], [1, 2]]),
        ("Na,b\n1,2\n", [[1, 2]]),
        ("a b\n1 2\n", [[1, 2]]),
        ('"a b" c\n1 2\n', [[1, 2]]),
        ('"line\nend";b\n"1,5";2\n', [[1.5, 2]]),
        ('a;b\n"1\n";2,5\n', [[1, 2.5]]),
    ],
)
def test_what_is_found(write, text, wanted):
    path = write(text)
    assert matrix(open_table(path)).tolist() == wanted


def test_utf_16_and_latin(write):
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        path = write(f"{mark}gr\u00f6\u00dfe\tb\r\n1,5\t2\r\n", encoding=encoding)
        assert open_table(path).columns == ("gr\u00f6\u00dfe",)
    path = write("gr\u00f6\u00dfe,b\n1,2\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"no text in utf-8 after line 0 .*encoding='latin-1'"):
        open_table(path)
    assert open_table(path, encoding="latin-1").columns == ("gr\u00f6\u00dfe",)
    with pytest.raises(ValueError, match="encoding='latn' is not known"):
        open_table(path, encoding="latn")
    with pytest.raises(ValueError, match="holds the character NUL"):
        open_table(write("a,b\n1,2\n", encoding="utf-16-le"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "t.csv is empty"),
        ("\n \n", "t.csv is empty"),
        ("# alone\n", "t.csv is empty"),
        ("a,b,c\n", "has 0 rows of 3 columns"),
        ("a\n1\n2\n", "has one column"),
        ("1,2\n3,4\n", r"nothing but numbers in its first row \(1, 2\).*--no-header"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "also numbers in its first row"),
        ("x,true\n1,2\n", "also numbers in its first row"),
        ("country,1990,1991\n1,5,6\n", r"also numbers in its first row \(1990, 1991\)"),
        ("red,small\nblue,large\nred,large\n", "'red' in its first row and again below"),
        ("NA,red\nbig,blue\n", "a missing cell, 'NA', in its first row"),
        ("#a,b\nx,y\nz,w\n", r"a comment of as many words as its columns, '#a,b'"),
        ("a,y,b,y\n1,2,3,4\n", r"the name 'y' twice or more, of columns 2, 4: rename"),
        ("a, a\n1,2\n", r"the name 'a' twice or more, of columns 1, 2"),
        (
            ",a,b\n5,1,2\n3,4,5\n",
            "no name for column 1 of 3 .*: name it, or remove it if it is an index",
        ),
        ("Unnamed: 0,a,b\n1,1,2\n0,4,5\n", "no name for column 1 of 3 .*: name it, or remove it"),
        ("a,,b\n1,2,3\n", "no name for column 2 of 3"),
        ("a,b,\n1,2,\n", "no name for column 3 of 3 .*: remove the separator at the end of each"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells, but the header has 2: correct the line; is the file"),
        ("a,b\n1,2\n3,4,\n", "line 3: 3 cells, but the header has 2: a separator is too many"),
        ("a,b\nr1,1,2\nr2,3,4\n", "line 2: 3 cells, but the header has 2: if the first cells"),
        ("a,b\n1,2\n\n\n3,4,5,6\n", "line 5: 4 cells"),
        ('a,b\n1,"2\n3,4\n', r"line 3: unexpected end of data; is a quote not closed\?"),
        ('a,b\n1,"2"3\n', "line 2: ',' expected after '\"'"),
        ("a;b\n1,234;1\n", r"numbers in column 'a' \(1,234\) whose comma .*decimal=','"),
        ('a,b\n"1,234",1\n', r"numbers in column 'a' \(1,234\) whose comma"),
        ("a;b\n1,5;2.5\n", r"a point in column 'b' \(2.5\) and with a comma in column 'a' \(1,5\)"),
        ("a;b\n1 234;1'234\n", r"parts thousands in two ways, in columns 'a' .* and 'b'"),
        ("a,b\n1,inf\n", "line 2, column 'b': 'inf' is infinite"),
        ("a,b\n1e999,2\n", "line 2, column 'a': '1e999' is infinite"),
        ("a,b\n1_000,2\n", r"has text columns a \('1_000' in line 2\)"),
        ("first name,age\n1 2,5\n", r"has text columns first name \('1 2' in line 2\)"),
        ("a,b,c\nx,1,2\ny,z,4\n", r"has text columns a \('x' in line 2\): encode them"),
        (
            "a,b\n1,2\n3,4\nx,5\n",
            r"line 4, column 'a': 'x' in a column of numbers and words \(2 and 1\)",
        ),
        ("a,b\n0,2\n1,4\nyes,5\n", r"line 4, column 'a': 'yes' in a column of numbers and words"),
        ("day,b\n2024-01-31,2\n", r"dates or times in columns day \('2024-01-31'\)"),
        ("day,b\n31.1.2024 12:30,2\n", "dates or times in columns day"),
        ("day,b\n12:30,2\n", "dates or times in columns day"),
        ("a,b\n1,up\n2,down\n", "target='b' of .* is text .*pass --classify if they are labels"),
        ("a,b\n1,2024-01-31\n", "target='b' of .* holds dates"),
        ("a,b\n1,2\n2,3\n3,x\n", r"line 4, column 'b': 'x' in a column of numbers and words"),
        ("a,b,c\n,1,2\n4,NA,6\n7,?,9\n", r"has missing cells in a \(1\), b \(2\): drop or impute"),
        (
            "a,b,c\n1,1,2\n4,5,\n",
            r"has missing cells in c \(1\): remove these rows, a target is never",
        ),
        ("a\x00b,c\n1,2\n", "holds the character NUL"),
    ],
)
def test_doubt_is_an_error(write, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        matrix(open_table(write(text)))
    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize(
    "word", ["", "NA", "n/a", "NaN", "null", "?", "-", "--", "None", "<NA>", " "]
)
def test_spellings_of_missing(write, word):
    path = write(f"a,b,y\n1,1,2\n{word},2,3\n5,4,3\n")
    with pytest.raises(ValueError, match=r"missing cells in a \(1\)"):
        open_table(path)
    assert matrix(open_table(path, impute="mean"))[1].tolist() == [3, 2, 3]
    assert matrix(open_table(path, impute="median"))[1].tolist() == [3, 2, 3]
    assert matrix(open_table(path, impute=-7))[1].tolist() == [-7, 2, 3]


def test_imputation(write, rng):
    n = 3 * SURVEYED
    X = rng.standard_normal((n, 3))
    gaps = rng.random((n, 2)) < 0.2
    cells = [[repr(float(value)) for value in row] for row in X]
    for row, gap in zip(cells, gaps, strict=True):
        row[:2] = ["" if empty else cell for cell, empty in zip(row, gap, strict=False)]
    path = write("a,b,y\n" + "\n".join(map(",".join, cells)))
    for impute, centre in (("mean", np.mean), ("median", np.median), (0.5, lambda _: 0.5)):
        table = open_table(path, impute=impute)
        assert table.n == (n if isinstance(impute, str) else None)
        wanted = X.copy()
        for j in range(2):
            wanted[gaps[:, j], j] = centre(X[~gaps[:, j], j])
        np.testing.assert_allclose(matrix(table, 997), wanted, rtol=1e-13, atol=1e-15)
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        open_table(path, impute="men")
    with pytest.raises(ValueError, match="impute=nan must be finite"):
        open_table(path, impute=float("nan"))
    with pytest.raises(ValueError, match=r"has missing cells in b \(\d+\)"):
        open_table(path, "b", impute="mean")


def test_nothing_to_impute_from(write):
    path = write("a,b,y\n,1,2\n,3,4\n")
    with pytest.raises(ValueError, match="has no mean of column 'a'"):
        open_table(path, impute="mean")
    assert matrix(open_table(path, impute=1)).tolist() == [[1, 1, 2], [1, 3, 4]]
    path = write("a,b,y\n,1,2\n1.7e308,3,4\n1.7e308,4,5\n")
    with pytest.raises(ValueError, match="has no mean of column 'a'"):
        open_table(path, impute="mean")


def test_missing_booleans_and_words(write):
    path = write("a,b,y\nyes,red,1\n,,2\nno,blue,3\nno,red,4\n")
    table = open_table(path, encode=True, impute="mean")
    assert table.columns == ("a", "b=(missing)", "b=blue", "b=red")
    assert matrix(table).tolist() == [
        [1, 0, 0, 1, 1],
        [1 / 3, 1, 0, 0, 2],
        [0, 0, 1, 0, 3],
        [0, 0, 0, 1, 4],
    ]
    with pytest.raises(ValueError, match=r"missing cells in a \(1\), b \(1\)"):
        open_table(path, encode=True)


def test_words_become_zeros_and_ones(write):
    path = write("size,colour,y\n3,red,1\n4,none,2\n5, blue ,3\n6,-,4\n7,red,5\n")
    table = open_table(path, encode=True)
    assert table.n == 5
    assert table.columns == ("size", "colour=-", "colour=blue", "colour=none", "colour=red")
    X = matrix(table)[:, 1:-1]
    assert X.argmax(axis=1).tolist() == [3, 2, 1, 0, 3]
    assert (X.sum(axis=1) == 1).all()


def test_infinity_among_words_is_a_word(write):
    path = write("a,b,y\ninf,inf,1\nx,yes,2\n")
    assert open_table(path, encode=True).columns == ("a=inf", "a=x", "b=inf", "b=yes")
    with pytest.raises(
        ValueError, match=r"text columns a \('x' in line 3\), b \('yes' in line 3\)"
    ):
        open_table(path)
    with pytest.raises(ValueError, match="'x' in a column of numbers and words"):
        open_table(write("a,y\ninf,1\nx,2\n1,2\n2,3\n"), encode=True)


def test_columns_that_are_named_as_words(write):
    path = write("zip,grade,y\n10115,1,1\n20095,A,2\n10115,2,3\n")
    with pytest.raises(ValueError, match=r"line 3, column 'grade': 'A' in a column of numbers and"):
        open_table(path, encode=True)
    table = open_table(path, encode=["zip", "grade"])
    assert table.columns == ("zip=10115", "zip=20095", "grade=1", "grade=2", "grade=A")
    assert matrix(table).tolist() == [[1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 2], [1, 0, 0, 1, 0, 3]]
    assert open_table(path, encode="grade").d == 4
    with pytest.raises(ValueError, match="encode='y' is none of the features: 'zip', 'grade'"):
        open_table(path, encode=["y"])


def test_a_hundred_words_and_no_more(write):
    for count in (CATEGORIES, CATEGORIES + 1):
        path = write("a,y\n" + "".join(f"w{i},{i}\n" for i in range(count)))
        if count == CATEGORIES:
            assert open_table(path, encode=True).d == CATEGORIES
        else:
            with pytest.raises(ValueError, match="more than 100 different words in column 'a'"):
                open_table(path, encode=True)


def test_two_features_of_one_name(write):
    with pytest.raises(ValueError, match="would have two features 'a=x'"):
        open_table(write("a,a=x,y\nx,1,2\nz,3,4\n"), encode=True)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["2", "10", "2"], (2, 10)),
        (["1.0", "2", "1"], (1.0, 2.0)),
        (["+", "-", "+"], ("+", "-")),
        (["yes", "no", "yes"], ("no", "yes")),
        (["none", "mild", "none"], ("mild", "none")),
        (["1", "x", "1"], ("1", "x")),
        (["inf", "x", "inf"], ("inf", "x")),
        (["2024-01-01", "2023-01-01", "2024-01-01"], ("2023-01-01", "2024-01-01")),
    ],
)
def test_labels(write, labels, classes):
    path = write("a,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    table = open_table(path, classify=True, header=True)
    assert table.classes == classes
    assert list(map(type, table.classes)) == list(map(type, classes))
    assert table.outputs == tuple(f"label={label}" for label in classes)
    Y = matrix(table)[:, 1:]
    assert (Y.sum(axis=1) == 1).all()
    wanted = [type(classes[0])(label) for label in labels]
    assert [classes[code] for code in Y.argmax(axis=1)] == wanted


def test_labels_besides_yes_and_no(write):
    path = write("a,y\n1,yes\n2,none\n3,no\n")
    assert open_table(path, classify=True).classes == ("no", "none", "yes")


def test_labels_that_are_none(write):
    with pytest.raises(ValueError, match=r"target='y' of .* holds only one class, 'x'"):
        open_table(write("a,y\n1,x\n2,x\n"), classify=True)
    with pytest.raises(ValueError, match=r"has missing cells in y \(1\)"):
        open_table(write("a,y\n1,x\n2,z\n3,NA\n"), classify=True)
    with pytest.raises(ValueError, match=r"has missing cells in y \(1\)"):
        open_table(write("a,y\n1,1\n2,2\n3,-\n"), classify=True)
    path = write("a,y\n" + "".join(f"{i},{i / 7!r}\n" for i in range(10_001)))
    with pytest.raises(ValueError, match="more than 10,000 labels"):
        open_table(path, classify=True)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", ["", "Unnamed: 0", '""'])
def test_an_index_of_pandas_is_no_feature(write, first, name):
    path = write(f"{name},a,y\n" + "".join(f"{first + i},{i},{2 * i}\n" for i in range(5)))
    with pytest.warns(
        UserWarning, match=rf"no name and counts the rows from {first}, so it is left"
    ):
        table = open_table(path)
    assert table.columns == ("a",)
    assert matrix(table, 2).tolist() == [[i, 2 * i] for i in range(5)]


def test_an_index_that_does_not_go_on(write):
    rows = "".join(f"{i},{i},{i}\n" for i in range(2 * SURVEYED))
    with pytest.warns(UserWarning, match="counts the rows from 0"):
        table = open_table(write(",a,y\n" + rows + "0,1,2\n"))
    with pytest.raises(ValueError, match=r"line 2,002: the first column has no name .* holds '0'"):
        matrix(table)


def test_tables_without_a_header(write):
    path = write("5.1,3.5,setosa\n4.9,3.0,virginica\n")
    table = open_table(path, header=False, classify=True)
    assert (table.columns, table.classes, table.n) == (("1", "2"), ("setosa", "virginica"), 2)
    assert matrix(table)[:, :2].tolist() == [[5.1, 3.5], [4.9, 3.0]]
    assert open_table(path, "1", header=False, encode=True).columns == (
        "2",
        "3=setosa",
        "3=virginica",
    )
    with pytest.raises(ValueError, match=r"has text columns 3 \('setosa' in line 1\)"):
        open_table(path, "1", header=False)
    years = write("1990,1991\n1,2\n")
    assert open_table(years, header=True).columns == ("1990",)
    assert matrix(open_table(years, header=False)).tolist() == [[1990, 1991], [1, 2]]
    with pytest.raises(ValueError, match="line 2: 1 cells, but the first row has 2"):
        open_table(write("1;2\n3\n"), header=False)
    pairs = write("1,5;2,5\n3,5;4,5\n")
    assert matrix(open_table(pairs, header=False)).tolist() == [[1.5, 2.5], [3.5, 4.5]]


def test_overrides(write):
    path = write("a;b\n1,234;1\n")
    assert matrix(open_table(path, decimal=",")).tolist() == [[1.234, 1]]
    assert matrix(open_table(path, thousands=",")).tolist() == [[1234, 1]]
    assert matrix(open_table(path, decimal=".")).tolist() == [[1234, 1]]
    path = write("a;b\n1.234;1\n")
    with pytest.warns(UserWarning, match=r"column 'a' \(1.234\) are read with a decimal point"):
        assert matrix(open_table(path)).tolist() == [[1.234, 1]]
    assert matrix(open_table(path, decimal=".")).tolist() == [[1.234, 1]]
    assert matrix(open_table(path, thousands=".")).tolist() == [[1234, 1]]
    assert matrix(open_table(path, decimal=",")).tolist() == [[1234, 1]]
    path = write("a:b\n1:2\n")
    assert matrix(open_table(path, separator=":")).tolist() == [[1, 2]]
    assert open_table(write("a\n1\n"), [], separator=",").d == 1
    for change, words in (
        ({"separator": "::"}, "separator='::' must be one character"),
        ({"separator": "a"}, "separator='a' must be one character"),
        ({"decimal": "'"}, 'decimal="\'" is not known'),
        ({"thousands": "_"}, "thousands='_' is not known"),
        ({"decimal": ",", "thousands": ","}, "thousands=',' is the decimal mark too"),
    ):
        with pytest.raises(ValueError, match=words):
            open_table(path, **change)


@pytest.mark.parametrize(
    "cell", ["12,34", "1,2345", "0,123", "1,234,56", ",123", "1,,234", "1.2.3"]
)
def test_thousands_are_groups_of_three(write, cell):
    path = write(f"a;y\n1,234,567.5;1\n2;2\n3;3\n{cell};4\n")
    with pytest.raises(ValueError, match=rf"line 5, column 'a': '{cell}'|a comma in column 'a'"):
        matrix(open_table(path))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("abc", "'abc' is not a number, unlike the cells above it: correct it, or leave"),
        ("1,5", r"'1,5' is not a number.*: correct it, or pass decimal="),
        ("yes", "'yes' is not a number"),
        ("inf", "'inf' is infinite"),
        ("x" * 99, f"'{'x' * 38}..' is not a number"),
    ],
)
def test_a_late_cell(write, cell, words):
    n = SURVEYED + 234
    path = write("a,y\n" + "1.5,2\n" * n + f'"{cell}",2\n')
    table = open_table(path)
    assert table.n is None
    place = rf"t.csv, line {n + 2:,} \(row {n:,}\), column 'a': "
    with pytest.raises(ValueError, match=place + words):
        matrix(table, 100)


def test_late_gaps_are_counted(write):
    table = open_table(write("a,b,y\n" + "1,1,2\n" * 2 * SURVEYED + ",1,2\n1,NA,2\n" * 3))
    with pytest.raises(ValueError, match=r"has missing cells in a \(3\), b \(3\): drop or impute"):
        matrix(table, 100)
    early = write("a,y\n,2\n" + "1,2\n" * 2 * SURVEYED + ",2\n")
    with pytest.raises(ValueError, match=r"has missing cells in a \(2\)"):
        open_table(early)
    late = open_table(write("a,y\n" + "1,2\n" * 2 * SURVEYED + "1,\n"), impute=0)
    with pytest.raises(ValueError, match=r"has missing cells in y \(1\): remove these rows"):
        matrix(late)


def test_a_late_word_of_a_column_of_booleans(write):
    table = open_table(write("a,y\n" + "yes,2\nno,3\n" * SURVEYED + "maybe,2\n"))
    with pytest.raises(ValueError, match="'maybe' is not yes, no, true or false"):
        matrix(table)


def test_a_file_that_changes(write):
    path = write("a,y\n" + "1,2\n" * 5000)
    table = open_table(path)
    assert len(matrix(table)) == 5000
    with path.open("ab") as file:
        file.write(b"3,4\n")
    with pytest.raises(
        ValueError, match=r"t\.csv changed while it was in use \(it had 20,004 bytes"
    ):
        next(table.blocks(10))
    table = open_table(path)
    rows = table.blocks(10)
    next(rows)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"t\.csv changed while it was in use"):
        list(rows)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read any more"):
        next(table.blocks(10))


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        open_table(tmp_path / "none.csv")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        open_table(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(OSError, match="no plain file"):  # and does not wait for it
        open_table(tmp_path / "pipe.csv")


def test_a_line_without_end(write, monkeypatch):
    monkeypatch.setattr("sdgpu.backend.rows.text_lines.LONGEST", 1000)
    with pytest.raises(ValueError, match=r"t\.csv, line 2 has more than 1,000 characters"):
        open_table(write("a,b\n" + "1" * 2000 + "\n"))


def test_the_file_is_never_in_memory(write, rng):
    import tracemalloc

    path = write(typed(rng.standard_normal((1000, 5)), ","), "small.csv")
    body = path.read_bytes().split(b"\n", 1)
    big = write(body[0] + b"\n" + body[1] * 20, "big.csv")
    for _ in open_table(path).blocks(500):
        pass
    tracemalloc.start()
    try:
        for _ in open_table(big).blocks(500):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < big.stat().st_size


def test_wide_tables(write, rng):
    values = rng.standard_normal((90, 3000))
    table = open_table(write(typed(values, ";")))
    assert (matrix(table) == values).all()
    # cells of text are larger than numbers
    assert [len(block.X) for block in table.blocks(1000)] == [CELLS // 3000, 90 - CELLS // 3000]
