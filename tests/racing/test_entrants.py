"Rules are found by name, in files and as functions; their configurations are one Sobol sequence in their own spaces."
import math
import sys
from functools import partial

import pytest
import torch

import races
from miniai.jobs.registry import OPTIMIZERS
from miniai.optim import AdamW, Muon
from miniai.racing.entrants import BASELINES, configurations, find_entrant

RULE = '''
def factor(): return 1

def mine(p, g, *, lr, k=1.): return p - k*factor()*lr*g
mine.space = dict(lr=(1e-3, 10.), k=[1., 2., 4.])
'''


def test_names_labels_functions_and_classes_are_entrants():
    assert find_entrant('adamw').build is AdamW
    assert (find_entrant('twin=muon').name, find_entrant('twin=muon').build) == ('twin', Muon)
    assert find_entrant(races.descent).name == 'descent'
    assert find_entrant('races:descent').space == dict(lr=(1e-2, 1.))
    assert find_entrant(torch.optim.SGD).name == 'SGD'
    assert {*BASELINES} == {'adamw', 'nesterov', 'muon'}


def test_a_rule_in_a_file_has_its_space_and_is_named_by_all_the_code_there(tmp_path):
    file = tmp_path/'rule.py'
    file.write_text(RULE)
    first = find_entrant(f'{file}:mine')
    assert first.space == dict(lr=(1e-3, 10.), k=[1., 2., 4.])
    assert find_entrant(f'other={file}:mine').digest == first.digest
    file.write_text(RULE.replace('return 1', 'return 2'))
    assert find_entrant(f'{file}:mine').digest != first.digest


def test_all_rules_try_the_same_points_of_their_spaces_and_more_trials_begin_with_the_same():
    a, b = (configurations(dict(lr=(low, 100*low), wd=(1e-3, 1e-1)), 8) for low in (1e-4, 1.))
    assert [c['lr']*1e4 for c in a] == pytest.approx([c['lr'] for c in b], rel=1e-3)
    assert [c['wd'] for c in a] == [c['wd'] for c in b]
    for n in (1, 3, 8): assert configurations(dict(lr=(1e-4, 1e-2), wd=(1e-3, 1e-1)), n) == a[:n]
    wider = configurations(dict(lr=(1e-4, 1e-2), wd=(1e-3, 1e-1), eps=[1, 2]), 8)
    assert [c['lr'] for c in wider] == [c['lr'] for c in a]


def test_rates_of_a_rule_of_the_library_lie_around_its_default():
    for name in ('adamw', 'sgd', 'muon'):
        low, high = find_entrant(name).space['lr']
        assert (10*low, high/10) == pytest.approx([OPTIMIZERS[name].lrs['warmup-cosine']]*2)


def test_configurations_fill_the_space_evenly_on_a_log_scale():
    found = configurations(dict(lr=(1e-4, 1.), k=['a', 'b'], fixed=7), 16)
    quarters = [int(-math.log10(c['lr'])) for c in found]
    assert [quarters.count(i) for i in range(4)] == [4]*4
    assert [sum(c['k'] == k for c in found) for k in 'ab'] == [8, 8]
    assert {c['fixed'] for c in found} == {7}


@pytest.mark.parametrize(('given', 'said'), [
    ('adamv', "unknown rule 'adamv'"), ('none.py:rule', 'no file none.py'), ('races:none', 'cannot import'),
    ('=adamw', 'no label'), (3, 'must be a function')])
def test_a_rule_that_does_not_exist_is_an_error(given, said):
    with pytest.raises(ValueError, match=said): find_entrant(given)


def test_a_file_that_fails_or_lacks_the_rule_is_an_error(tmp_path):
    (tmp_path/'bad.py').write_text('import nothing_of_this_name')
    (tmp_path/'empty.py').write_text('')
    with pytest.raises(ValueError, match='ModuleNotFoundError'): find_entrant(f'{tmp_path}/bad.py:rule')
    with pytest.raises(ValueError, match='has no rule rule'): find_entrant(f'{tmp_path}/empty.py:rule')


def test_a_file_of_a_package_that_imports_from_it_is_named_by_its_module(tmp_path):
    (tmp_path/'pack').mkdir()
    (tmp_path/'pack'/'__init__.py').write_text('')
    (tmp_path/'pack'/'mine.py').write_text('from . import beside')
    with pytest.raises(ValueError, match=r'mine.py: ImportError: .* give its module, such as pack\.mine:rule'):
        find_entrant(f'{tmp_path}/pack/mine.py:rule')


def test_a_function_that_is_no_rule_is_an_error_of_what_was_given():
    def no_keyword(p, g, lr): return p - lr*g
    def branches(p, g, *, lr): return p - lr if g > 0 else p + lr
    for rule, said in ((no_keyword, 'it needs a keyword-only lr'), (branches, 'may not branch on an element')):
        with pytest.raises(ValueError, match=said): find_entrant(rule)


@pytest.mark.parametrize(('space', 'said'), [
    ([1], 'must be a dict'), (dict(wd=1), "with 'lr'"), (dict(lr=(1., .1)), 'above 0'), (dict(lr=(0., 1.)), 'above 0'),
    (dict(lr=[]), 'no values for lr'), (dict(lr=('a', 'b')), 'above 0'), (dict(lr=(.1, None)), 'above 0'),
    (dict(lr=(.1, math.inf)), 'JSON'), (dict(lr=[torch.relu]), 'JSON'), (dict(lr=torch.ones(1)), 'JSON'),
    (dict(lr=1., k=2.), 'k, which the rule does not take'),
    (dict(lr=1.) | {f'h{i}': 1 for i in range(16)}, 'more than 16')])
def test_a_space_that_does_not_fit_is_an_error(space, said):
    def rule(p, g, *, lr): return p - lr*g
    rule.space = space
    with pytest.raises(ValueError, match=said): find_entrant(rule)


def test_a_hyperparameter_without_a_default_must_be_in_the_space():
    def rule(p, g, *, lr, k): return p - k*lr*g
    with pytest.raises(ValueError, match='lacks k'): find_entrant(rule)


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr): super().__init__(params, dict(lr=lr, weight_decay=0.))


class Shy(torch.optim.SGD):
    def __init__(self, params, lr, weight_decay=0.): super().__init__(params, lr, weight_decay=weight_decay)
    space = dict(lr=[.5], weight_decay=[.25])


def scaled(p, g, *, lr, k): return p - k*lr*g
def with_wd(params, lr, wd): return torch.optim.SGD(params, lr, weight_decay=wd)
def without(params, lr): return torch.optim.SGD(params, lr)
def as_torch(params, lr, weight_decay): return torch.optim.SGD(params, lr, weight_decay=weight_decay)
def anything(params, **hypers): return AdamW(params, **hypers)


@pytest.mark.parametrize(('rule', 'name', 'decays'), [
    (Plain, 'Plain', False), (Shy, 'Shy', True), (torch.optim.SGD, 'SGD', True),
    (partial(torch.optim.SGD, momentum=.9), 'SGD', True), (partial(torch.optim.SGD, weight_decay=.1), 'SGD', False),
    (with_wd, 'with_wd', True), (without, 'without', False), (as_torch, 'as_torch', True),
    (anything, 'anything', True), (AdamW, 'AdamW', True), (partial(AdamW, beta1=.8), 'AdamW', True),
    (partial(scaled, k=2.), 'scaled', True), (partial(partial(with_wd), lr=1.), 'with_wd', True)])
def test_whatever_makes_an_optimizer_is_built_with_the_decay_that_it_takes(rule, name, decays):
    entrant = find_entrant(rule)
    config = configurations(entrant.space, 2)[1]
    opt = entrant.build([torch.nn.Parameter(torch.ones(2))], **config)
    assert entrant.name == name
    assert len(config) == 1 + decays
    if decays: assert opt.param_groups[0]['weight_decay'] == config.get('wd', config.get('weight_decay'))
    assert opt.param_groups[0]['lr'] == config['lr']


def test_a_rule_that_cannot_be_called_with_its_space_is_an_error():
    def rule(param, grad, *, lr): return param - lr*grad
    with pytest.raises(ValueError, match=r"'grad'\. The first arguments of a rule must be called p and g"):
        find_entrant(rule)
    rule = partial(without)
    rule.space = dict(lr=1., k=2.)
    with pytest.raises(ValueError, match=r"cannot build without from parameters, lr, k: .*'k'"): find_entrant(rule)


def test_a_path_with_an_equals_sign_may_have_a_label_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path/'lr=1').mkdir()
    (tmp_path/'lr=1'/'rule.py').write_text(RULE)
    names = {given: find_entrant(given).name for given in ('lr=1/rule.py:mine', f'{tmp_path}/lr=1/rule.py:mine',
                                                           'own=lr=1/rule.py:mine', './lr=1/rule.py:mine')}
    assert [*names.values()] == ['mine', 'mine', 'own', 'mine']


def test_a_pair_of_whole_numbers_gives_whole_numbers_but_for_rates():
    found = configurations(dict(lr=(1, 10), wd=(1, 10), k=(1, 10), f=(1., 10)), 16)
    assert {type(c['k']) for c in found} == {int}
    assert {min(c['k'] for c in found), max(c['k'] for c in found)} <= {*range(1, 11)}
    assert len({c['k'] for c in found}) > 5
    assert {type(c[nm]) for c in found for nm in ('lr', 'wd', 'f')} == {float}
    assert len({c['f'] for c in found}) == 16
