"The pages of docs/ run from top to bottom, each as one program, and docs/learner.md names all there is."
import importlib
import pkgutil
import re
import runpy
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import miniai
from miniai import Callback, DataLoaders, MetricsCB, TrainLearner
from miniai.events import EVENTS, PHASES
from miniai.jobs.registry import OPTIMIZERS
from miniai.learner import Learner

DOCS = Path(__file__).resolve().parents[1]/'docs'
SRC = DOCS.parent/'src'/'miniai'
PAGES = sorted(p for p in DOCS.glob('*.md') if p.stem not in ('architecture', 'index', 'league'))  # which have no code


def cells(text):
    return re.findall(r'^```\{code-cell\}[^\n]*\n(.*?)^```$', text, re.M | re.S)


def shown(text):
    "The blocks of output in a page."
    return re.findall(r'^```text\n(.*?)^```$', text, re.M | re.S)


def masked(output):
    "The lines of an output, with numbers, devices and spaces that may differ made equal."
    output = re.sub(r'[0-9a-f]{12}…', '#', re.sub(r'\b(cuda|mps)\b', 'cpu', output))
    return [' '.join(re.sub(r'\d[\d,.]*(e[-+]\d+)?(?!\w)', '#', line).split()) for line in output.split('\n')]


def is_printed(page, captured):
    "Check that what a page shows is what its code printed, except for numbers, and for lines left out at '…'."
    printed = masked(captured.out + captured.err)
    for block in shown((DOCS/f'{page}.md').read_text()):
        missing = [line for line in masked(block) if line not in (*printed, '…')]
        assert not missing, '\n'.join([f'{page} shows', *missing, 'but printed', *printed])


def run(page, names):
    "Run the cells of a page in the namespace `names`, timing each step once."
    for cell in cells((DOCS/f'{page}.md').read_text()):
        short = re.sub(r'^repeats = \d+', 'repeats = 1', cell, flags=re.M)
        names.setdefault('__name__', '__main__')
        exec(compile(short, page, 'exec'), names)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_page_is_a_notebook_that_jupytext_can_open(page):
    text = page.read_text()
    assert text.startswith('---\njupytext:\n')
    assert 'format_name: myst' in text
    read_only = re.findall(r'^```(?:bash|python)$', text, re.M)  # commands of a terminal, code for other machines
    assert text.count('```') == 2*(len(cells(text)) + len(shown(text)) + len(read_only)) > 0


def test_the_site_has_every_page_and_every_public_module():
    named = re.findall(r'^[\w/]+$', (DOCS/'index.md').read_text(), re.M)
    conf = runpy.run_path(str(DOCS/'conf.py'))
    pages = {p.stem for p in DOCS.glob('*.md')} - {'index'} | {'results/index'}
    assert sorted(named) == sorted(pages | {f'reference/{name}' for name in conf['REFERENCE']})
    shown = {m for _, packages in conf['REFERENCE'].values() for p in packages for m in conf['public_modules'](p)}
    thin = {'datasets', 'conv', 'activations', 'init', 'sgd', 'training', 'resnet', 'augment', 'accel', 'proof'}
    public = {'.'.join(p.relative_to(SRC.parent).with_suffix('').parts) for p in SRC.rglob('*.py')
              if re.search(r'^__all__ = \[.', p.read_text(), re.M) and p.stem != '__init__'}
    assert public - shown == {f'miniai.{nm}' for nm in thin}


def test_every_page_runs_in_a_test():
    assert [p.stem for p in PAGES] == ['accelerated_sgd', 'checkpoints', 'data', 'distributed', 'fast', 'fine_tuning',
                                       'learner', 'looking', 'race', 'readable', 'rules', 'safe', 'sick_networks',
                                       'tasks', 'tracking', 'using_a_model', 'wrong_inputs', 'your_own_rule',
                                       'your_pictures', 'your_table']


def test_the_story_of_accelerated_sgd_ends_lower_than_it_begins():
    names = {}
    run('accelerated_sgd', names)
    plt.close('all')
    def loss_of_walk(rule, **hypers): return (names['curvature']*names['walk'](rule, **hypers)[-1]**2).sum()
    rules = [loss_of_walk(names['SGD'].rule, lr=.063), loss_of_walk(names['Momentum'].rule, lr=.3, mom=.8),
             loss_of_walk(names['Adam'].rule, lr=.4, beta1=.8)]
    assert rules == sorted(rules, reverse=True)
    losses = {name: row['loss'] for name, row in names['results'].items()}
    assert losses['Muon, 1cycle'] < losses['AdamW, 1cycle'] < losses['AdamW'] < losses['SGD']
    assert names['before'][0]/names['before'][-1] > 20*names['after'][0]/names['after'][-1]


def test_the_page_on_reading_shows_a_rule_on_floats_and_compiled_with_the_same_numbers(capsys):
    run('readable', {})
    steps = re.findall(r'step \d: p = ([\d.]+)', capsys.readouterr().out)
    assert len(steps) == 6
    assert steps[:3] == steps[3:]


def test_the_page_on_speed_compiles_a_rule_that_equals_the_steps_by_hand():
    names = {}
    run('fast', names)
    assert names['opt'].path.startswith('fused: 16 parameters')
    avg, g = torch.zeros(()), torch.tensor(-2.)
    assert names['signum'](torch.tensor(1.), g, avg, lr=.5)[0] == 1.5


def test_the_page_on_safety_resumes_with_the_same_bits(capsys):
    run('safe', {})
    assert capsys.readouterr().out.splitlines()[-2:] == ['the power went out', 'the same bits: True']


def test_the_page_on_trackers_records_each_batch_once_and_warns(capsys):
    run('tracking', {})
    printed = capsys.readouterr().out.splitlines()
    for line in ('shown by: figures.csv', 'the power went out', 'each batch once: True'): assert line in printed
    assert sum('TrackCB: csv failed, and the rest of this run is not tracked' in line for line in printed) == 1


def test_the_page_on_several_processes_trains_in_one():
    names = {}
    run('distributed', names)
    assert names['learn'].history[-1]['accuracy'] > .8


def test_the_page_on_checkpoints_shows_an_exact_resume_and_a_refusal(capsys):
    run('checkpoints', {})
    out = capsys.readouterr().out
    assert out.count('\nTrue\n') == 2
    assert re.search(r"model\.0\.weight was \(32, 20\) float32 .* is \(40, 20\) float32", out)
    assert "['best.safetensors', 'checkpoint-00003-3-00000000.safetensors']" in out


def test_the_rules_of_the_page_learn_and_what_they_may_not_do_is_said(capsys):
    names = {}
    run('your_own_rule', names)
    for name in ('SGD', 'Momentum', 'Adam', 'Accord'):
        first, last = names['curves'][name][0], names['curves'][name][-1]
        assert last < first/5, name
    out = capsys.readouterr().out
    assert 'write where(condition, a, b) instead of if' in out
    assert 'rule cannot be traced' in out
    assert 'the model is small' in out
    assert names['raced']['Muon'] < names['raced']['Adam'] < 1.2
    assert re.search(r'matrices +2 +4,736 +Muon', out)


def rows_of(header):
    "The rows of a table of docs/rules.md, by optimizer."
    table = (DOCS/'rules.md').read_text().split(f'\n| optimizer | {header} |')[1].split('\n\n')[0]
    rows = [[c.strip(' `') for c in row.split(' | ')] for row in table.split('\n')[2:]]
    return {row[0].strip('| `'): [c.rstrip(' |') for c in row[1:]] for row in rows}


def state_bytes(cls):
    "Of each number of a square matrix in float32."
    p = nn.Parameter(torch.randn(64, 64))
    p.grad = torch.randn_like(p)
    opt = cls([p], lr=1e-3)
    opt.step()
    return sum(x.nbytes for x in opt.state[p].values() if isinstance(x, torch.Tensor))/p.numel()


def measured_times():
    "The last column of the newest table that bench/optim_strong.py recorded, for 1M parameters."
    newest = max(DOCS.parent.glob('bench/results/optim_strong_*.md'), default=None)
    rows = re.findall(r'^\| (\w+) \| 1M \|.* ([\d.]+) \|$', newest.read_text(), re.M) if newest else []
    return dict(rows)


def test_the_page_on_rules_has_a_row_for_each_optimizer_with_its_state_and_the_measured_time(capsys):
    run('rules', {})
    assert 'def adamw(p, g, avg, sqr_avg' in capsys.readouterr().out
    classes, costs = {row.build.__name__: row.build for row in OPTIMIZERS.values()}, rows_of('when to use it')
    assert [*rows_of('step')] == [*costs]
    assert all(re.search(r'\d{4}', row[-1]) or 'fast.ai' in row[-1] for row in rows_of('step').values())
    assert set(costs) == set(classes)
    assert {nm: int(row[1]) for nm, row in costs.items()} == {nm: round(state_bytes(c)) for nm, c in classes.items()}
    assert {nm: row[2] for nm, row in costs.items()} == dict.fromkeys(costs, '-') | measured_times()


def test_the_page_on_races_tells_a_bad_rule_from_tuned_baselines(page):
    names = page('race', 'scipy filelock')
    verdicts = {(c['b'], c['verdict']) for c in names['answer'].comparisons}
    assert verdicts == {('adamw', 'worse'), ('nesterov', 'worse')}
    assert str(names['again']) == str(names['answer'])
    assert 'descent: the best lr is the highest that was tried' in str(names['answer'])
    unfair, fair = (names[nm].figures['linear', 120] for nm in ('answer', 'tuned'))
    assert max(fair['descent']) < min(unfair['descent'])/5
    assert fair['adamw'] == unfair['adamw']
    assert [c['verdict'] for c in names['unfair'].comparisons] == ['better']
    assert [c['verdict'] for c in names['tuned'].comparisons] == ['cannot tell']*2


def test_the_page_on_the_league_has_the_tables_of_the_newest_one():
    newest = max(DOCS.parent.glob('bench/results/race_2*.md')).read_text().split('the answer of the race')[0]
    tables = [line for line in newest.split('\n') if line.startswith('| ')]
    page = (DOCS/'league.md').read_text()
    assert [line for line in page.split('\n') if line.startswith('| ')] == tables
    assert len([line for line in tables if line.startswith('| adamw |')]) > 0


def test_the_callbacks_of_the_page_on_the_learner_do_what_it_says(capsys):
    names = {'__name__': 'learner'}
    run('learner', names)
    out = capsys.readouterr().out
    assert names['flat'].norms[-1] < 0.1 <= min(names['flat'].norms[:-1])
    assert 'stopped in epoch' in out
    assert '[] torch.Size([200, 1])' in out  # a dry run left no trace
    assert 'the largest weight is' in out


def test_the_page_on_data_shows_what_it_says(capsys):
    pytest.importorskip('datasets')
    with pytest.warns(UserWarning, match='valid, a MemoryLoader, are normalized by nothing, and those of train'):
        run('data', {})
    out = capsys.readouterr().out
    assert 'torch.float32 torch.int64 tensor(' in out
    assert 'torch.Size([64, 3, 32, 32])\ninputs of shape (1000, 32, 32, 3) look like images' in out
    assert '[(torch.float32, (64, 8)), (torch.int64, (64,)), (torch.int64, (64,))]' in out
    assert out.count('13 2 mean [') == 5
    assert '800 samples in memory (float32 8, int64), 13 batches of 64, shuffled' in out
    assert '\n1000 False\n' in out


@pytest.fixture
def page(monkeypatch, tmp_path, capsys):
    "Runs a page in an empty folder, checks the output that it shows, and returns its names."
    def ran(name, needs):
        for package in needs.split(): pytest.importorskip(package)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
        monkeypatch.setenv('MPLBACKEND', 'agg')
        names = {}
        run(name, names)
        is_printed(name, capsys.readouterr())
        return names
    return ran


def test_the_page_on_pictures_shows_what_it_prints_and_learns(page):
    with pytest.warns(UserWarning, match='1 of 801 pictures cannot be read and are skipped'):
        names = page('your_pictures', 'PIL tyro')
    assert names['results'].accuracy > 0.7
    assert names['predict'](names['bag']).label == 'bag'
    assert len(Path('trousers.csv').read_text().splitlines()) == 1 + len([*Path('new/trousers').iterdir()])


def test_the_page_on_tables_shows_what_it_prints_and_keeps_the_best_epoch(page):
    names = page('your_table', 'pandas sklearn tyro')
    learn, stop = names['learn'], names['stop']
    assert learn.evaluate()['loss'] == pytest.approx(stop.best)
    assert stop.best < learn.history[-1]['loss'] < 1
    assert len(Path('predictions.csv').read_text().splitlines()) == 443


def test_the_page_on_wrong_inputs_lists_at_least_30_with_the_messages_that_they_get(page):
    names = page('wrong_inputs', 'PIL pandas')
    rows = re.findall(r'^\| `(.*)` \| (.*) \|$', (DOCS/'wrong_inputs.md').read_text(), re.M)
    for call, message in rows:
        with pytest.raises((ValueError, TypeError, OSError)) as e: eval(call, names)
        assert str(e.value).split('\n')[0] == message, call
    assert len(rows) >= 30


def test_the_page_on_fine_tuning_shows_what_it_prints_and_beats_training_from_scratch(page):
    names = page('fine_tuning', 'matplotlib')
    losses = [names[nm].evaluate()['loss'] for nm in ('tuned', 'thawed', 'scratch')]
    assert max(losses[:2]) < losses[2]
    assert names['other'].evaluate()['accuracy'] == pytest.approx(names['best'].best)


def test_the_page_on_looking_shows_what_it_prints_and_finds_the_faults(page):
    names = page('looking', 'matplotlib')
    sick = {row.name.strip() for row in names['sick'].check().attention}
    assert {'training batch', 'loss', 'gradients', 'overfits a batch'} <= sick
    assert not {'training batch', 'gradients', 'overfits a batch'} & {r.name for r in names['learn'].check().attention}


def test_the_page_on_using_a_model_shows_what_it_prints_and_onnx_agrees(page):
    names = page('using_a_model', 'PIL sklearn onnxscript onnxruntime tyro')
    want = names['predict'].probabilities([torch.from_numpy(names['pictures'][1500:1503])])
    assert torch.from_numpy(names['probabilities']) == pytest.approx(want, abs=1e-5)
    assert 'learn.fit(2)' in Path('train.py').read_text()


def test_the_page_on_sick_networks_finds_each_fault_by_name_and_cures_it(page):
    names = page('sick_networks', 'matplotlib')
    plt.close('all')
    text, sick, cured = (DOCS/'sick_networks.md').read_text(), names['sick'], names['cured']
    assert len(sick) == len(re.findall(r'^## \d+\. ', text, re.M)) == 10
    def verdicts(network): return {v.name for v in network[1].verdicts}
    for name in sick:
        assert name in verdicts(sick[name]), name
        assert verdicts(cured[name]) == set(), name
        assert re.search(rf'^```text\n(?:.+\n)*{name} \(\w+\)$', text, re.M), name
    assert verdicts(names['healthy']) == set()
    score, loss = names['score'], lambda network: network[0].evaluate()['loss']
    for name in sick.keys() - {'overfitting', 'validation data in training'}:
        assert score(cured[name][0]) > max(0.6, score(sick[name][0]) + 0.1), name
    assert loss(cured['overfitting']) < loss(sick['overfitting']) - 0.1
    excess = {nm: score(learn) - names['on_new'](learn) for nm, (learn, _) in
              dict(sick=sick['validation data in training'], cured=cured['validation data in training']).items()}
    assert excess['sick'] > 0.05 > abs(excess['cured'])


def test_a_page_that_shows_what_is_not_printed_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(f'{__name__}.DOCS', tmp_path)
    (tmp_path/'a.md').write_text('```text\nloss 0.25  1e-05\n…\nlast 3\n```\n')
    class Captured: out, err = 'loss  7.5 3e-06\n', 'last 12\n'
    is_printed('a', Captured)
    Captured.err = 'first 12\n'
    with pytest.raises(AssertionError, match=r'a shows\n +last #'): is_printed('a', Captured)


def test_ten_everyday_tasks_give_the_weights_and_figures_of_plain_pytorch(capsys):
    text, names = (DOCS/'tasks.md').read_text(), {}
    run('tasks', names)
    assert text.count('\n## ') == capsys.readouterr().out.count('same weights') == 10
    assert not re.search(r'\._[a-z]', '\n'.join(cells(text)))  # no private names
    assert torch.equal(names['confusion'], names['plain_confusion'])
    assert names['confusion'].diagonal().sum() > 0.7*names['confusion'].sum()


def test_the_comparison_of_the_page_on_tasks_can_fail():
    names = {'__name__': 'tasks'}
    exec(compile(cells((DOCS/'tasks.md').read_text())[0], 'tasks', 'exec'), names)
    learn, plain = TrainLearner(nn.Linear(2, 1)), nn.Linear(2, 1)
    plain.load_state_dict(learn.model.state_dict())
    learn.history = [dict(loss=0.5)]
    names['same'](learn, plain, loss=torch.tensor(0.5))
    with pytest.raises(AssertionError): names['same'](learn, plain, loss=torch.tensor(0.51))
    with torch.no_grad(): plain.bias += 1e-2
    with pytest.raises(AssertionError): names['same'](learn, plain)


# The tables of docs/learner.md

def column(header):
    "The first cells of the table with that header."
    table = (DOCS/'learner.md').read_text().split(f'\n| {header} |')[1].split('\n\n')[0]
    return [row.split('|')[1] for row in table.split('\n')[2:]]


def names_in(text): return re.findall(r'`(\w+)`', text)


def test_the_page_names_every_attribute_of_a_learner_and_no_other():
    learn = TrainLearner(nn.Linear(2, 1), DataLoaders.from_arrays(torch.zeros(10, 2), torch.zeros(10, 1), bs=5),
                         cbs=[MetricsCB()])
    learn.fit(1)
    public = {nm for nm in (*vars(Learner), *vars(learn)) if not nm.startswith('_')}
    attributes = {nm for nm in public if not callable(getattr(Learner, nm, None))}
    assert set(names_in(' '.join(column('attribute')))) == attributes


def test_the_page_names_every_event_and_no_other():
    listed = names_in(' '.join(column('event')))
    assert sorted(listed) == sorted((*EVENTS, *PHASES))


def test_the_page_names_the_order_of_every_callback():
    text = (DOCS/'learner.md').read_text().split('\n| order |')[1].split('\n\n')[0]
    listed = {nm: float(row.split('|')[1]) for row in text.split('\n')[2:] for nm in names_in(row.split('|')[2])}
    packages = 'events', 'distributed', 'metrics', 'callbacks', 'steps', 'diagnosis', 'resume'
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(miniai.__path__, 'miniai.')
               if m.name.split('.')[1] in packages]
    found = {nm: getattr(m, nm) for m in modules for nm in getattr(m, '__all__', ())}
    callbacks = {nm: cb for nm, cb in found.items() if isinstance(cb, type) and issubclass(cb, Callback)}
    assert {nm: callbacks[nm].order for nm in listed} == listed
    assert {nm for nm, cb in callbacks.items() if cb.order} <= set(listed)
