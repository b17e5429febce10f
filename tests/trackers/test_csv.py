"The store of plain files, read back by Python's own csv and json."
import csv
import json

import pytest
from PIL import Image

from miniai.trackers.csv import CSVTracker
from tracked import expected, followed, without_times


def figures_in(path):
    found = {}
    with path.open(newline='') as f:
        for line in csv.DictReader(f):
            found.setdefault(line['name'], []).append((int(line['step']), float(line['value'])))
    return found


def test_a_run_that_was_killed_and_resumed_is_one_run_with_every_figure_once(tmp_path):
    run = followed('csv', tmp_path)
    path = tmp_path/'csv'/'first'
    assert [p.name for p in (tmp_path/'csv').iterdir()] == ['first']
    assert without_times(figures_in(path/'figures.csv')) == expected()
    config = json.loads((path/'config.json').read_text())
    assert (config['note'], config['optimizer'], config['epochs'], config['parameters']) == ('a run', 'SGD', 3, 67)
    assert (path/'alerts.csv').read_text().splitlines() == ['step,title,text',
                                                           '8,dead layer 1.ReLU,99 % is 0. Raise it.']
    with Image.open(path/'pictures'/'a curve-12.png') as image: assert image.size == (200, 100)
    assert run.resumed.view == f'{path}/figures.csv'


def test_another_run_of_that_name_gets_a_number(tmp_path):
    runs = [CSVTracker(tmp_path, 'a', None, 0).run for _ in range(3)]
    assert runs == ['a', 'a-2', 'a-3']


def test_a_line_that_was_cut_short_is_dropped_when_the_run_continues(tmp_path):
    tracker = CSVTracker(tmp_path, 'a', None, 0)
    tracker.figures([(1, {'x': .5}), (2, {'x': .25})])
    file = tmp_path/'csv'/'a'/'figures.csv'
    file.write_text(file.read_text() + '3,x')
    CSVTracker(tmp_path, 'b', 'a', 1)
    assert figures_in(file) == {'x': [(1, .5)]}


def test_options_are_not_known(tmp_path):
    with pytest.raises(TypeError, match='nope'): CSVTracker(tmp_path, 'a', None, 0, nope=1)
