"Cells show a short text and keep the exact number."
import pytest

from miniai.report.blocks import Cell, facts, number, percent, plural, shown, time_of


@pytest.mark.parametrize(('cell', 'text', 'value'), [
    (number(.123456), '0.1235', .123456), (number(None), '—', None), (number(2., unit='ms'), '2 ms', 2.),
    (percent(.98765), '98.8 %', .98765), (percent(float('nan')), '—', None), (percent(None), '—', None),
    (time_of(.0125), '12 ms', .0125), (time_of(12.345), '12.3 s', 12.345), (time_of(125.), '2 min 5 s', 125.),
    (time_of(7260.), '2 h 1 min', 7260.), (time_of(None), '—', None), (shown(True), 'yes', None),
    (shown([1, 'a']), '1, a', None),
    (shown(None), '—', None), (shown('x'), 'x', None), (shown(3), '3', 3), (shown(Cell('a', 1)), 'a', 1)])
def test_a_cell_has_a_text_and_the_exact_value(cell, text, value):
    assert (cell.text.replace('\xa0', ' '), cell.value) == (text, value)


def test_facts_that_are_not_known_are_left_out():
    assert list(facts(dict(a=1, b=None, c='')).content['items']) == ['a', 'c']


def test_words_for_one_and_for_several():
    found = [plural(1, 'epoch'), plural(2000, 'epoch'), plural(2, 'batch', 'batches')]
    assert found == ['1 epoch', '2,000 epochs', '2 batches']
