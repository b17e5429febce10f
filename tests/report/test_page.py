"The page of a run: its numbers are the run's, names stay text, it needs nothing else, and works for what is left."
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.report.page import page, write_report
from miniai.report.record import read_run
from recorded import CLASSES, HEALTH, HISTORY, Page, record, write_run

RECORDS = 'status', 'batches', 'results', 'data', 'model', 'environment', 'health', 'profile'


def shown(*folders): return Page(page([read_run(f) for f in folders]))


@pytest.fixture
def run(tmp_path): return write_run(tmp_path/'run')


# Numbers

def test_the_figures_of_every_epoch_are_those_of_the_run(run):
    head, *rows = shown(run).tables['Figures of every epoch']
    names = 'loss', 'accuracy', 'seconds'
    assert head == ['epoch', *(f'{nm}, {p}' for nm in names for p in ('training', 'validation'))]
    by = {(r['epoch'], r['phase']): r for r in HISTORY}
    assert rows == [[str(e + 1), *(by[e, p][nm] for nm in ('loss', 'accuracy', 'seconds') for p in ('train', 'eval'))]
                    for e in range(3)]


def test_the_result_comes_first_and_is_the_last_validation_with_the_best_beside_it(tmp_path):
    rows = [dict(r, accuracy=.95) if (r['epoch'], r['phase']) == (1, 'eval') else r for r in HISTORY]
    found = shown(write_run(tmp_path/'run', rows))
    assert found.facts['validation accuracy'] == HISTORY[-1]['accuracy']
    assert found.facts['validation loss'] == HISTORY[-1]['loss']
    assert found.facts['time in epochs'] == pytest.approx(sum(r['seconds'] for r in HISTORY))
    assert found.facts['parameters'] == 67
    assert 'best 95.00 % in epoch 2' in found.text
    titles = re.findall(r'<h2 id="r1-(\w+)">', found.html)
    assert titles == ['result', 'verdicts', 'curves', 'layers', 'examples', 'time', 'data', 'model', 'configuration',
                      'environment', 'repeat']


def test_classes_confusion_time_data_model_and_options_are_those_of_the_run(run):
    found = shown(run)
    names = 'samples', 'precision', 'recall', 'f1'
    per_class = [[r['class'], *(r[nm] for nm in names)] for r in CLASSES['per_class']]
    assert found.tables['Figures of each class'][1:] == per_class
    assert found.tables['Confusion: true classes down, predicted classes across'][1:] == [['cat', 4, 1], ['dog', 2, 3]]
    assert found.tables['Samples of each class'][1:] == [['cat', 25, 5], ['dog', 15, 5]]
    assert found.sections['configuration'] == dict(optimizer='adamw', lr=.01, schedule='onecycle')
    assert found.tables['Time by phase'][1:] == [['training', 4.5, 4.5/20], ['validation', 9., 9/20],
                                                 ['start, checkpoints and the rest', 6.5, 6.5/20]]
    assert found.tables['Parts of training'][1:] == [['forward', 3., 250., .75]]
    assert found.tables['Layers with parameters'][1:] == [['0', 'Linear', '8 x 4', 40]]
    assert (found.facts['training samples'], found.facts['batch size'], found.facts['torch']) == (40, 10, '2.10')


def test_the_model_says_what_a_step_takes_where_it_was_counted(tmp_path):
    memory = dict(parameters=1e6, gradients=1e6, optimizer=None, activations=5e5)
    model = record()['model'] | dict(step=dict(mflops=.75, samples=10, memory=memory))
    found = shown(write_run(tmp_path/'run', model=model))
    assert found.facts['multiply-adds per sample'] == 750_000
    assert '2.5 MB (parameters 1 MB, gradients 1 MB, activations 0.5 MB)' in found.text.replace('\xa0', ' ')
    assert 'memory of a step with 10 samples' in found.facts
    assert 'multiply-adds per sample' not in shown(write_run(tmp_path/'other')).facts


def test_verdicts_say_everything_they_know(run, tmp_path):
    text = shown(run).text
    for words in ('dead layer', 'since batch 12', 'Most of 1 is zero.', 'Lower the rate.', 'likely',
                  'Measured: 0.9 . Threshold: 0.5 a paper.',
                  'Also checked: labels.'): assert words in text
    assert 'Nothing found. Checked: labels.' in shown(write_run(tmp_path/'b', health=HEALTH | dict(verdicts=[]))).text


def test_the_command_repeats_the_run_and_a_stopped_run_can_be_continued(run, tmp_path):
    assert f'miniai train --config {run}/config.toml' in shown(run).text
    assert '--resume' not in shown(run).text
    stopped = write_run(tmp_path/'my run', status=dict(state='stopped', error='Ctrl-C.', epochs=9))
    assert f"miniai train --resume --out '{stopped}'" in shown(stopped).text
    assert 'It ended with Ctrl-C.' in shown(stopped).text


# One file

def test_the_page_needs_nothing_else_and_is_small(run):
    found = shown(run)
    assert len(found.html.encode()) < 2e6
    for tag, attrs in found.tags:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'base')
        for name, value in attrs.items():
            assert not name.startswith('on')
            if name in ('src', 'href', 'srcset', 'action'): assert re.match(r'#|data:', value), (tag, name, value)
    style = re.search('<style>(.*)</style>', found.html, re.S)[1]
    assert 'url(' not in style
    assert '@import' not in style
    assert not re.search(r'(https?:)?//', found.html)
    assert "default-src 'none'" in found.html


def test_a_run_as_large_as_can_be_recorded_fits_into_2_mb(tmp_path):
    from miniai.report.batches import thinned
    names = [f'class {i}' for i in range(1000)]
    per_class = [dict(zip(('class', 'samples', 'precision', 'recall', 'f1'), (nm, 50, .5, .5, .5), strict=True))
                 for nm in names]
    png = b64encode(os.urandom(9000)).decode()  # a picture of 64 by 64 that cannot be compressed has 12 kB
    samples = [dict(index=i, true='a', predicted='b', probability=.5, png=png) for i in range(12)]
    series = [1/(i + 1) for i in range(200)]
    names_of = 'mean', 'std', 'near_zero', 'saturated', 'gradient'
    layers = {f'layer {i}': dict.fromkeys(names_of, series) | dict(kind='ReLU') for i in range(300)}
    parameters = {f'weight {i}': dict(norm=series, gradient=series, update=series) for i in range(600)}
    records = dict(every=1, batches=list(range(200)), layers=layers, parameters=parameters, run={})
    modules = [dict(name=f'{i}.weight', type='Linear', shape=[512, 512], parameters=512**2) for i in range(400)]
    history = [dict(r, epoch=e) for e in range(500) for r in HISTORY[:2]]
    folder = write_run(
        tmp_path/'run', history, health=dict(verdicts=HEALTH['verdicts']*20, checked=[], records=records),
        batches=thinned([2 - i/1e6 for i in range(10**5)], [.1]*10**5, list(range(200, 10**5 + 1, 200))),
        results=dict(kind='classes', epoch=2, samples=50000, classes=names, confusion=None, mistakes=samples,
                     examples=samples, per_class=per_class, confused=[dict(true='a', predicted='b', count=3)]*20),
        data=dict(classes=names, counts=dict(train=[9]*1000, valid=[9]*1000)), model=dict(modules=modules))
    found = shown(folder)
    assert not found.where('aside'), found.text[:500]
    assert len(found.html.encode()) < 2e6
    assert 'Left out' not in found.text


def test_of_a_page_that_would_be_larger_layers_and_then_more_are_left_out_but_no_comparison(tmp_path, monkeypatch):
    folders = [write_run(tmp_path/str(i)) for i in range(6)]
    whole = shown(*folders)
    for limit, lost, kept in ((len(whole.html), 'Parameters', 'Figures of each class'),
                              (1, 'Figures of every epoch', 'Best values of each run')):
        monkeypatch.setattr('miniai.report.page.LARGEST', limit)
        found = shown(*folders)
        assert lost in whole.tables.keys() - found.tables.keys()
        assert kept in found.tables
        assert len(found.tables['Best values of each run']) == 7
        assert 'Left out, so that this page stays below 2 MB' in found.text


def test_the_templates_are_part_of_the_package():
    found = {p.name for p in (resources.files('miniai.report')/'templates').iterdir()}
    assert found == {'page.html', 'blocks.html', 'style.css'}


def test_the_page_is_written_completely_or_not_at_all(run, tmp_path, monkeypatch):
    path = write_report([run], tmp_path/'report.html')
    before = path.read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='No space left'): write_report([run], path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['report.html', 'run']


def test_without_jinja2_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    with pytest.raises(ImportError, match=r"pip install 'miniai-torch\[report\]'"): shown(run)


# For everyone

def test_pictures_tables_and_charts_have_names_and_identifiers_are_unique(run, tmp_path):
    found = shown(run, write_run(tmp_path/'other'))
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for tag, attrs in found.tags:
        if tag == 'img': assert attrs['alt']
        if tag == 'svg': assert attrs.get('aria-hidden') == 'true' or attrs['role'] == 'img'
        if 'aria-labelledby' in attrs: assert set(attrs['aria-labelledby'].split()) <= set(ids), attrs
        if attrs.get('href', '').startswith('#'): assert attrs['href'][1:] in ids
        if tag == 'th': assert attrs['scope'] in ('row', 'col')
    assert found.html.count('<table') == found.html.count('<caption') > 10
    assert found.where('html') == [dict(lang='en')]
    assert [t for t, _ in found.tags].count('h1') == 1


# Names

TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=30) | st.sampled_from([
    '<b>bold</b>', '"><script>alert(1)</script>', "' onload='x", '{{ 7*7 }}', '{% raw %}', '&amp;', '</style>', '-->',
    '</title>', '\x00', '\ud800', '\u202e', 'javascript:alert(1)'])


@pytest.fixture(scope='module')
def several(tmp_path_factory): return tmp_path_factory.mktemp('runs')


@settings(max_examples=25, deadline=None)
@given(name=TEXT)
def test_names_that_look_like_html_stay_text(several, name):
    tags = [t for t, _ in shown(write_run(several/os.urandom(8).hex())).tags]
    rename = lambda x: json.loads(json.dumps(x).replace('"cat"', json.dumps(name)))  # noqa: E731
    health = json.loads(json.dumps(HEALTH).replace('"dead layer"', json.dumps(name)))
    layers = {name: health['records']['layers']['1']}
    folder = write_run(
        several/os.urandom(8).hex(), results=rename(CLASSES), model=dict(name=name, parameters=1, modules=[dict(
            name=name, type=name, shape=[1], parameters=1)], optimizer=name, loss=name),
        data=dict(classes=[name, 'dog'], counts=dict(train=[25, 15], valid=[5, 5]), source=name),
        environment=dict(device=name, command=[name], versions={name: name}), status=dict(state='finished', name=name),
        health=dict(health, records=dict(health['records'], layers=layers)),
        profile=[dict(phase='train', part=name, seconds=1., ms_per_batch=1., share=.9)],
        history=HISTORY if name in HISTORY[0] else [{**r, name: .5} for r in HISTORY])
    found = shown(folder)
    added = {t for t, _ in found.tags} - set(tags)
    assert added <= {'aside', 'ul', 'li', 'p'}, added
    assert not any(nm.startswith('on') for _, attrs in found.tags for nm in attrs)
    clean = re.sub('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]', '\ufffd', name)
    assert ' '.join(clean.split()) in found.text
    found.html.encode()


# What is left of a run

def test_a_killed_a_running_and_an_unknown_run_say_so(tmp_path):
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    import socket
    here = dict(state='running', host=socket.gethostname(), epochs=9)
    states = [shown(write_run(tmp_path/str(i), status=status)).where('span') for i, status in enumerate((
        here | dict(pid=os.getpid()), here | dict(pid=ended.pid), here | dict(pid=1, host='elsewhere'), None))]
    assert [s[0]['class'] for s in states] == ['state running', 'state killed', 'state unknown', 'state unknown']
    assert 'was killed' in shown(tmp_path/'1').text
    assert 'was running when this page was written' in shown(tmp_path/'0').text


@pytest.mark.parametrize('content', [b'{', b'', b'5', b'\xff', b'null', b'['*10**5])
def test_a_damaged_file_is_named_and_the_rest_is_shown(run, content):
    for name in RECORDS: (run/f'{name}.json').write_bytes(content)
    found = shown(run)
    for name in RECORDS:
        assert f'{name}.json is damaged' in found.text or f'{name}.json cannot be read' in found.text
    assert len(found.tables['Figures of every epoch']) == 4


@pytest.mark.parametrize('content', [dict(a=1), dict(
    kind='classes', verdicts=5, records=1, batches='x', loss=[1, 'a'], classes=3, modules=[1], counts=[1], versions=2,
    command=3, epochs='many', state=['running'], pid='x', name=4, parameters='y')])
def test_unexpected_content_of_a_part_leaves_the_other_parts(run, content):
    for name in RECORDS: (run/f'{name}.json').write_text(json.dumps([content] if name == 'profile' else content))
    found = shown(run)
    assert len(found.sections['configuration']) == 3
    assert 'has unexpected content' in found.text


@pytest.mark.parametrize('name', ['status.json', 'batches.json', 'data.json', 'model.json', 'environment.json',
                                  'metrics.jsonl', 'config.toml'])
def test_a_missing_file_is_named(run, name):
    (run/name).unlink()
    assert f'{name} is missing' in shown(run).text


def test_optional_parts_that_were_not_recorded_are_no_problem(tmp_path):
    found = shown(write_run(tmp_path/'run', health=None, results=None, profile=None))
    assert not found.where('aside')
    assert 'HealthCB records what verdicts need' in found.text


def test_a_broken_line_of_the_metrics_is_named_and_left_out(run):
    with (run/'metrics.jsonl').open('a') as f: f.write('{"epoch": 3, "phase": "tr\n')
    found = shown(run)
    assert 'metrics.jsonl is damaged: left out line 7' in found.text
    assert len(found.tables['Figures of every epoch']) == 4


def test_a_run_killed_in_its_first_epoch_has_a_page(tmp_path):
    found = shown(write_run(tmp_path/'run', history=None, batches=None, results=None, health=None, profile=None,
                            status=dict(state='stopped', error='a signal.', epochs=2)))
    assert 'No epoch was finished.' in found.text
    assert 'is missing' not in found.text


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'is not the folder of a run: it has no config\.toml'): shown(tmp_path)


def test_a_page_that_cannot_be_written_is_an_error_that_names_it_and_leaves_nothing(run, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*nowhere/r\.html'"):
        write_report([run], tmp_path/'nowhere'/'r.html')
    def full(*paths): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    there = sorted(os.listdir(tmp_path))
    with pytest.raises(OSError, match=r"No space left on device: '.*r\.html'"):
        write_report([run], tmp_path/'r.html')
    assert sorted(os.listdir(tmp_path)) == there
