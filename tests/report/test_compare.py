"Several runs side by side: the best values of each, their curves in one picture, and the options that differ."
import re

from miniai.report.page import page
from miniai.report.record import read_run
from recorded import HISTORY, Page, write_run


def shown(*folders): return Page(page([read_run(f) for f in folders]))
def worse(by): return [dict(r, accuracy=r['accuracy'] - by) for r in HISTORY]


def test_the_best_values_of_each_run_are_beside_each_other_and_the_best_of_all_is_marked(tmp_path):
    a, b = write_run(tmp_path/'a'), write_run(tmp_path/'b', worse(.25), health=dict(verdicts=[]))
    found = shown(a, b)
    head, *rows = found.tables['Best values of each run']
    assert head == ['run', 'state', 'accuracy', 'loss', 'epochs', 'time in epochs', 'verdicts']
    top = max(r['accuracy'] for r in HISTORY if r['phase'] == 'eval')
    seconds = sum(r['seconds'] for r in HISTORY)
    assert rows == [['a', 'finished', top, HISTORY[-1]['loss'], 3, seconds, 'dead layer'],
                    ['b', 'finished', top - .25, HISTORY[-1]['loss'], 3, seconds, 'none']]
    assert re.findall(r'>([\d.]+ %) ★<', found.html.replace('\xa0', ' ')) == [f'{100*top:.2f} %']


def test_only_runs_of_the_same_loss_and_data_are_compared(tmp_path):
    losses = dict(a=('cross_entropy', 'my pictures'), b=('mse_loss', 'my pictures'), c=('cross_entropy', 'others'))
    runs = [write_run(tmp_path/nm, worse(.1*i), model=dict(loss=loss), data=dict(source=source))
            for i, (nm, (loss, source)) in enumerate(losses.items())]
    assert '★' not in shown(*runs).text
    twin = write_run(tmp_path/'d', worse(.3), model=dict(loss='mse_loss'), data=dict(source='my pictures'))
    stars = [row for row in re.findall('<tr>.*?</tr>', shown(*runs, twin).html, re.S) if '★' in row]
    assert [('>b<' in row, row.count('★')) for row in stars] == [(True, 2), (False, 1)]  # losses are equal


def test_only_options_that_differ_are_listed_also_those_that_one_run_lacks(tmp_path):
    a = write_run(tmp_path/'a', config='lr = 0.1\nseed = 1\nopt = ""\n')
    b = write_run(tmp_path/'b', config='lr = 0.2\nseed = 1\nopt = "beta2=0.9"\nnew = true\n')
    head, *rows = shown(a, b).tables['Options']
    assert head == ['what', 'a', 'b']
    assert rows == [['lr', .1, .2], ['opt', '(none)', 'beta2=0.9'], ['new', '—', 'yes']]
    assert 'Options: no differences.' in shown(a, a).text


def test_machines_and_versions_that_differ_are_listed(tmp_path):
    a = write_run(tmp_path/'a', environment=dict(device='cpu', threads=2, command=['x'], versions=dict(torch='2.10')))
    b = write_run(tmp_path/'b', environment=dict(device='cuda', threads=2, command=['y'], versions=dict(torch='2.13')))
    assert shown(a, b).tables['Environment'][1:] == [['device', 'cpu', 'cuda'], ['torch', '2.10', '2.13']]


def test_each_metric_has_one_picture_with_a_line_for_each_run(tmp_path):
    found = shown(*(write_run(tmp_path/nm) for nm in ('a', 'b', 'c')))
    figure = re.search('<figure>(.*?)</figure>', found.html, re.S)[1]
    assert re.findall(r'<path class="line (s\d)" d="[^"]*">', figure) == ['s1', 's2', 's3']
    assert 'c, epoch 3: accuracy 0.72' in figure


def test_every_run_follows_with_all_of_its_sections_and_runs_of_one_name_are_numbered(tmp_path):
    found = shown(write_run(tmp_path/'x'/'run'), write_run(tmp_path/'y'/'run'), write_run(tmp_path/'killed', None))
    assert [row[0] for row in found.tables['Best values of each run'][1:]] == ['run (1)', 'run (2)', 'killed']
    assert sum(found.html.count(f'id="r{i}-repeat"') for i in (1, 2, 3)) == 3
    assert 'metrics.jsonl is missing' in found.text
