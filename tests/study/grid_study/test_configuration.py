"""Tables of a study: what is read, and every error with its line, key and the nearest known key."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from sdgpu.study import read_study
from sdgpu.study.grid_study.cells import decompositions

WHOLE = """\
name = "widths"
seeds = [0, 1]

[data]
source = "diabetes"

[[kernel]]
name = "gaussian"
gamma = [0.1, 1]

[[kernel]]
name = "matern"
nu = 1.5

[grid]
lams = "1e-2:1e2:5"
alphas = [0, 0.5]
steps = 3
"""

FOURIER = "[[method]]\nfeatures = 'fourier'\nsize = 9\n"
SHARED = "[federated]\nworkers = 2"


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_study_is_read(tmp_path):
    study = read_study(write(tmp_path, WHOLE))
    assert study.seeds == (0, 1)
    assert study.kernel[0].gamma == (0.1, 1.0)
    assert study.kernel[1].nu == (1.5,)
    np.testing.assert_allclose(study.grid.lams, [0.01, 0.1, 1, 10, 100])
    assert study.grid.alphas == (0.0, 0.5)
    assert len(decompositions(study)) == 2 * 3
    assert study.choose.rules == ("ridge", "fixed", "star", "joint", "gcv")
    np.testing.assert_allclose(study.grid.ridges(7), study.grid.lams)
    relative = read_study({"name": "a", "data": {"source": "digits"}, "kernel": {"name": "linear"}})
    np.testing.assert_allclose(relative.grid.ridges(7), 7 * np.geomspace(1e-6, 1, 30))


def test_the_example_that_init_writes_is_a_study(tmp_path):
    text = files("sdgpu.study.grid_study").joinpath("first_study.toml").read_text()
    study = read_study(write(tmp_path, text))
    assert len(decompositions(study)) == 50
    # and what stands in it as a comment is right as well
    lines = [line.removeprefix("# ") if "=" in line else line for line in text.splitlines()[6:]]
    lines = [line.removeprefix("# ") if line.startswith("# [[") else line for line in lines]
    read_study(write(tmp_path, "\n".join(lines).replace('target = "column"', "")))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gamma =", "gama =", r"line 9, \[kernel\] number 1 gama: .* did you mean 'gamma'"),
        ("nu =", "gamma =", r"line 13, \[kernel\] number 2 gamma: .* 'matern', which takes nu"),
        ("nu = 1.5", "nu = 2", r"line 13, .*nu=\[2.0\] must be of 0.5, 1.5, 2.5 \.\. 100.5"),
        ('"matern"', '"mattern"', r"line 12, .*name='mattern' is not known: did you mean 'matern'"),
        ("[0.1, 1]", "[]", r"line 9, .*gamma: the list is empty"),
        ("[0.1, 1]", "[1, 1.0]", r"line 9, .*names one value twice"),
        ("[0.1, 1]", "[0.1, -1]", r"line 9, .*gamma=-1: input should be greater than 0"),
        ("[0.1, 1]", "['a']", r"line 9, .*gamma='a': input should be a valid number"),
        ("[0.1, 1]", "[true]", r"line 9, .*gamma=True: input should be a valid number"),
        ("[0.1, 1]", "nan", r"line 9, .*finite"),
        ("1e-2:1e2:5", "0:1:5", r"line 16, \[grid\] lams: '0:1:5': both ends finite and > 0"),
        ("1e-2:1e2:5", "1:5", r"line 16, \[grid\] lams: '1:5': write numbers, or 'low:high:count'"),
        ("steps = 3", "steps = 0", r"line 18, \[grid\] steps=0: .*greater than or equal to 1"),
        ("steps = 3", "steps = 2.5", r"line 18, \[grid\] steps=2.5: .*valid integer"),
        ("steps = 3", "stepps = 3", r"line 18, \[grid\] stepps: .*did you mean 'steps'"),
        ("steps = 3", "lams_over_n = 1", r"line 18, .*lams and lams_over_n are one grid"),
        ("seeds = [0, 1]", "seeds = [0, 0]", r"line 2, .*names one value twice"),
        ("seeds = [0, 1]", "seeds = -1", r"line 2, .*seeds=-1: .*greater than or equal to 0"),
        ("seeds", "seed", r"line 2, .*'seed': did you mean 'seeds'"),
        ('name = "widths"', "", r"the key 'name' is missing"),
        ('"widths"', '"../widths"', r"line 1, name='../widths'.*pattern"),
        ("[data]", "[date]", r"line 4, date: there is no key 'date': did you mean 'data'"),
        ("source", "sorce", r"line 5, \[data\] sorce: .*did you mean 'source'"),
        ("[grid]", "[grid", r"study.toml is no TOML: .*line 15"),
    ],
)
def test_errors_say_where(tmp_path, old, new, words):
    assert old in WHOLE
    path = write(tmp_path, WHOLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=words) as caught:
        read_study(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[noise]\nkind = 'symmetric'\nlevels = [0, 2]", r"levels: 2.0 is no share"),
        ("[noise]\nlevels = -1", "greater than or equal to 0"),
        ("[[method]]\nname = 'eig'", "did you mean 'eigh'"),
        ("[[method]]\nsize = 3", "line 20, .*size is of features"),
        ("[[method]]\nlearn_by = 'gcv'", "learn_by says how: name what"),
        ("[[method]]\nlearn = 'width'\nlearn_by = 'loss'", "learn_by='loss'"),
        ("[[method]]\nfeatures = 'nystrom'", "needs size"),
        ("[[method]]\nsmoother = 'flow'", "smoother='flow' is not known"),
        ("[[method]]\nname = 'cg'\nsmoother = 'cutoff'", "cutoff needs all eigenvalues"),
        ("[choose]\nrules = ['loo']\n[[method]]\nsmoother = 'cutoff'", "is of ridge alone"),
        ("[choose]\nrules = ['advice']\n[[method]]\nsmoother = 'cutoff'", "is of ridge alone"),
        ("[[method]]\nfeatures = 'own'\nsize = 3", "leave size out"),
        ("[[method]]\nname = 'cg'\nfeatures = 'own'", "leave name and operator out"),
        ("[choose]\nrules = ['mae']", "rules='mae' is not known"),
        ("[choose]\nmetrics = ['mse2']", "metrics='mse2' is not known"),
        ("[choose]\nmetrics = ['pinball_2']", "quantile=2.0 must be between 0 and 1"),
        ("[choose]\nrules = ['r2_1se']\nmetrics = ['r2']", "rules='r2_1se' is not known"),
        ("[choose]\nrules = []", "the list is empty"),
        ("[compute]\nprecision = 'float16'", "'float64' or 'float32'"),
        ("[compute]\nworkers = 0", "greater than or equal to 1"),
        ("[results]\nkeep = ['msee']", "did you mean 'mse'"),
        ("[[network]]\npreset = 'digit'", "did you mean 'digits'"),
        ("[[method]]\nlater_lam_over_first = 0", "greater than 0"),
        ("[[method]]\nlater_lam_over_first = [2, 2]", "names one value twice"),
        ("[[method]]\nname = 'cg'\nlater_lam_over_first = 2", "needs all eigenvalues"),
        ("[interval]\ncoverage = 1", "less than 1"),
        ("[interval]\nfolds = 1", "greater than or equal to 2"),
        ("[interval]\nfold = 3", "did you mean 'folds'"),
        ("[interval]\n[[method]]\nname = 'cg'", "without folds intervals need all eigenvectors"),
        ("[interval]\n[[method]]\nfeatures = 'own'", "without folds intervals need all"),
        ("[interval]\nfolds = 3\n[[method]]\nsmoother = 'cutoff'", "intervals are of ridge"),
        ("[interval]\n[[method]]\nlater_lam_over_first = 2", "with one lam for all steps"),
        ("[federated]\nworker = 2", r"line 20, \[federated\] worker: .* did you mean 'workers'"),
        ("[federated]\nsplits = 'targets'", "the key 'workers' is missing"),
        ("[federated]\nworkers = 0", "greater than or equal to 1"),
        ("[federated]\nworkers = [2, 2]", "names one value twice"),
        ("[federated]\nworkers = 2\nranks = 0", "greater than or equal to 1"),
        ("[federated]\nworkers = 2\nranks = []", "line 21, .*the list is empty"),
        ("[federated]\nworkers = 2\nsplits = 'target'", "line 21, .*did you mean 'targets'"),
        ("[federated]\nworkers = 2\nanswers = 'merge'", "line 21, .*did you mean 'merged'"),
        ("[federated]\nworkers = 2\nanswers = 'distilled'", r"unlabelled = 0\.2, say"),
        ("[federated]\nworkers = 2\nunlabelled = 1", "less than 1"),
        ("[federated]\nworkers = 2", r"line 19, federated: .* features = 'fourier' \(a size\)"),
        (f"{FOURIER}learn = 'width'\n{SHARED}", "leave learn of"),
        (f"{FOURIER}smoother = 'cutoff'\n{SHARED}", "leave smoother of"),
        (f"{FOURIER}[compute]\nprecision = 'float32'\n{SHARED}", "precision = 'float64' in"),
        (f"{FOURIER}[teacher]\nname = 'linear'\n{SHARED}", r"what \[teacher\] needs are rows"),
        (f"{FOURIER}[interval]\nfolds = 3\n{SHARED}", r"what \[interval\] needs are rows"),
        ("[choose]\nrules = ['student']", "the rule 'student' has no teacher"),
        ("[teacher]\ndegree = 2", "the key 'name' is missing"),
        ("[teacher]\nname = 'polynomal'", "did you mean 'polynomial'"),
        ("[teacher]\nname = 'polynomial'\ngamma = 1\nnu = 1.5", "nu is no parameter of"),
        ("[teacher]\nname = 'gaussian'\ngamma = [1, 2]", r"gamma=\[1.0, 2.0\]: one teacher"),
        ("[teacher]\nname = 'linear'\nunlabelled = 1", "less than 1"),
        (
            "[teacher]\nname = 'linear'\n[[method]]\nlater_lam_over_first = 2",
            "students have one lam",
        ),
        ("[teacher]\nname = 'linear'\nlams = 1\nlams_over_n = 1", "are one grid"),
        ("[synthetic_labels]\nrounds = 0", "greater than or equal to 1"),
        ("[synthetic_labels]\nweights = 0.5", "the key 'rounds' is missing"),
        ("[synthetic_labels]\nrounds = 2\nweights = [0, 1.5]", "1.5 is no share of true labels"),
        ("[synthetic_labels]\nrounds = 2\nschemes = 'replace'", "is 'mix' at the weight 0"),
        ("[synthetic_labels]\nrounds = 2\nschemes = 'mixed'", "did you mean 'mix'"),
        ("[synthetic_labels]\nrounds = 2\n[[method]]\nname = 'cg'", "need all eigenvalues"),
        ("[synthetic_labels]\nrounds = 2\n[noise]\nkind = 'symmetric'", "kind = 'gaussian'"),
    ],
)
def test_errors_of_other_tables(tmp_path, more, words):
    with pytest.raises(ValueError, match=words):
        read_study(write(tmp_path, WHOLE + more))


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"name": "a"}, "nothing to do"),
        ({"name": "a", "data": {"source": "digits"}}, r"\[kernel\] is missing beside \[data\]"),
        ({"name": "a", "kernel": {"name": "linear"}}, r"\[data\] is missing beside \[kernel\]"),
        (
            {"name": "a", "data": {"source": "earth"}, "kernel": {"name": "linear"}},
            "need features in every",
        ),
        (
            {
                "name": "a",
                "data": {"source": "earth"},
                "kernel": {"name": "gaussian"},
                "method": {"features": "nystrom", "size": 9},
                "noise": {"levels": [0.5]},
            },
            "without noise",
        ),
        (
            {
                "name": "a",
                "data": {"source": "earth"},
                "kernel": {"name": "gaussian"},
                "method": {"features": "nystrom", "size": 9},
                "teacher": {"name": "linear"},
            },
            "a teacher needs rows in memory",
        ),
        (
            {
                "name": "a",
                "data": {"source": "earth"},
                "kernel": {"name": "gaussian"},
                "method": {"features": "fourier", "size": 9},
                "federated": {"workers": 2},
            },
            "not those of data read in blocks",
        ),
    ],
)
def test_tables_that_do_not_go_together(tables, words):
    with pytest.raises(ValueError, match=words):
        read_study(tables)


def test_files_are_looked_for_beside_the_study(tmp_path):
    text = WHOLE.replace('"diabetes"', '"rows/some.csv"')
    with pytest.raises(FileNotFoundError, match=r"line 5, .*there is no data file .*some\.csv"):
        read_study(write(tmp_path, text))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "some.csv").write_text("a,y\n1,2\n")
    table = read_study(write(tmp_path, text)).data[0]
    assert table.path == str(tmp_path / "rows" / "some.csv")
    assert table.source == "rows/some.csv"
    with pytest.raises(FileNotFoundError, match="study init"):
        read_study(tmp_path / "none.toml")


def test_a_cell_is_named_by_what_decides_its_numbers(tmp_path):
    def keys(text):
        return [
            cell.key
            for job in decompositions(read_study(write(tmp_path, text)))
            for cell in job.cells
        ]

    first = keys(WHOLE)
    assert len(set(first)) == 6
    # what is the default may be said; seeds and kernels may be added
    assert keys(WHOLE + "[noise]\nlevels = 0\n[compute]\nworkers = 3") == first
    assert set(first) < set(
        keys(WHOLE.replace("[0, 1]", "[0, 1, 2]").replace("[0.1, 1]", "[0.1, 1, 2]"))
    )
    for changed in (
        WHOLE.replace("steps = 3", "steps = 4"),
        WHOLE.replace("alphas = [0, 0.5]", "alphas = [0, 0.6]"),
        WHOLE + "[compute]\ntol = 1e-5",
        WHOLE + "[choose]\nrules = 'ridge'",
        WHOLE.replace("[grid]", "[noise]\nkind = 'symmetric'\n[grid]"),
        WHOLE.replace('source = "diabetes"', 'source = "diabetes"\nvalidation = 0.3'),
    ):
        assert not set(first) & set(keys(changed))
    noisy = keys(WHOLE + "[noise]\nlevels = [0, 0.5]")
    assert len(noisy) == 12
    assert set(first) < set(noisy)


def test_too_many_fits_are_counted_not_made(tmp_path):
    text = WHOLE.replace("[0.1, 1]", '"1:2:100000"').replace(
        "nu = 1.5", 'lengthscale = "1:9:50000"'
    )
    with pytest.raises(
        ValueError, match=r"300,000 fits \(1 x 2 x 150000 x 1 x 1.*max_fits = 10,000"
    ):
        decompositions(read_study(write(tmp_path, text)))
