"The names of `miniai` are there, with or without torch at the start, and what is none is an error."
import subprocess
import sys

import pytest

import miniai
from miniai import names


def run(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr


def test_a_name_is_imported_when_it_is_used_and_nothing_before():
    assert run('import sys, miniai; assert "torch" not in sys.modules; miniai.Learner; assert "torch" in sys.modules\n'
               'assert miniai.Learner is miniai.learner.Learner') == ''
    assert run('from miniai import *; Learner, race, optimizer') == ''
    assert run('import miniai; miniai.optim.Adam') == ''
    assert run('from miniai import learner; learner.Learner') == ''


def test_all_names_are_those_of_the_list():
    assert miniai.__all__ == names.__all__
    assert all(getattr(miniai, nm) is getattr(names, nm) for nm in names.__all__)
    assert {*names.__all__, '__version__'} <= {*dir(miniai)}


def test_what_is_no_name_is_an_error_of_its_kind():
    with pytest.raises(AttributeError, match="module 'miniai' has no attribute 'Lerner'"): _ = miniai.Lerner
    assert 'cannot import name \'Lerner\' from \'miniai\'' in run('from miniai import Lerner')
