"The code of a rule: its file and what the file imports beside it, so that a change anywhere there names other runs."
import sys

import torch

import races
from miniai.optim import AdamW
from miniai.racing.code import code_of, imported_files
from miniai.racing.entrants import find_entrant


def files(folder, **texts):
    for nm, text in texts.items():
        path = folder/(nm.replace('__', '/') + '.py')
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_the_files_that_a_file_imports_are_found_wherever_the_statement_is(tmp_path):
    files(tmp_path, rule='import one, json, torch\ndef f(): from three import x', one='import two.part as p', three='',
          two__part='from . import near\nfrom ..four import x', two__near='', four='import rule', other='')
    (tmp_path/'two'/'__init__.py').write_text('')
    assert {p.relative_to(tmp_path).as_posix() for p in imported_files(tmp_path/'rule.py')} == {
        'one.py', 'two/__init__.py', 'two/part.py', 'two/near.py', 'three.py', 'four.py'}
    assert imported_files(tmp_path/'other.py') == set()


def test_a_file_of_a_package_may_import_by_the_name_of_the_package(tmp_path):
    files(tmp_path, pack__rule='from pack.near import x', pack__near='')
    (tmp_path/'pack'/'__init__.py').write_text('')
    assert {p.name for p in imported_files(tmp_path/'pack'/'rule.py')} == {'__init__.py', 'near.py'}


def test_a_rule_runs_with_what_its_file_imports_now_and_is_named_by_it(tmp_path):
    files(tmp_path, my_rule='from my_scale import scale\ndef mine(p, g, *, lr): return p - scale*lr*g',
          my_scale='scale = 1')
    first = find_entrant(f'{tmp_path}/my_rule.py:mine')
    assert 'scale = 1' in first.code
    files(tmp_path, my_scale='scale = 20')
    second = find_entrant(f'{tmp_path}/my_rule.py:mine')
    assert second.digest != first.digest
    p = torch.nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    second.build([p], lr=.1).step()
    assert p.item() == -1
    sys.path.remove(str(tmp_path))


def test_rules_run_with_the_files_beside_them_where_others_have_the_same_names(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    text = 'import json\nfrom my_scale import scale\nfrom pack.part import k\ndef mine(p, g, *, lr): return scale, k'
    for nm in 'ab':
        (tmp_path/nm).mkdir()
        files(tmp_path/nm, mine=text, my_scale=f'scale = {nm!r}', pack__part=f'k = {nm!r}', json='')
        (tmp_path/nm/'pack'/'__init__.py').write_text('')
    for nm in 'aba':
        assert find_entrant(f'{tmp_path}/{nm}/mine.py:mine').build.rule(0, 0, lr=0) == (nm, nm)
    assert 'dumps' in vars(sys.modules['json'])


def test_the_library_and_torch_are_names_and_functions_without_a_file_their_source():
    assert code_of(AdamW, 'x') == 'miniai.optim.classes.AdamW'
    assert code_of(torch.optim.SGD, 'x') == 'torch.optim.sgd.SGD'
    assert code_of(races.descent, 'x').startswith('descent\n"A tiny task')
    a, b, c = (eval(f'lambda p, g: p - {k}*g') for k in (2, 2, 3))
    assert code_of(a, 'x') == code_of(b, 'x') != code_of(c, 'x')
