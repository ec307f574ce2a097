"""The list of named mutants does not rot: every change is still one."""

import ast

from tests.trainer_mutants import ROOT, named_mutants


def test_every_mutant_changes_one_place_and_is_python():
    rotten = []
    for one in named_mutants():
        source = (ROOT / one.path).read_text()
        if source.count(one.before) != 1:
            rotten.append(f"{one.path}: {one.name}: {source.count(one.before)} of {one.before!r}")
            continue
        changed = ast.parse(source.replace(one.before, one.after))
        assert ast.dump(changed) != ast.dump(ast.parse(source)), one.name
        assert all((ROOT / test).is_file() for test in one.tests), one.name
    assert not rotten, "\n".join(rotten)
