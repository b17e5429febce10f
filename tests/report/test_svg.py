"Drawings show the values where they are, leave gaps where there are none, and escape all text."
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from miniai.report.scales import Axis
from miniai.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, bar, escaped, interval, sparkline


def chart(): return Chart(Axis(0, 10, 0, 0, 'batch'), Axis(0, 1, 0, 0))
def paths(svg, kind): return re.findall(rf'<path class="{kind}" d="([^"]*)"', svg)


def test_a_line_runs_from_corner_to_corner():
    c = chart()
    c.line([0, 10], [0, 1], 's1')
    assert paths(c.markup('a', 't', 'd'), 'line s1') == [
        f'M{LEFT}.0 {HEIGHT - BOTTOM}.0 {WIDTH - RIGHT}.0 {TOP}.0']


def test_a_value_beyond_the_axis_has_a_triangle_at_the_edge_and_its_size_in_a_title():
    c = chart()
    c.line([0, 5, 10], [.5, 250., 1.], 's1 dotted')
    svg = c.markup('a', 't', 'd')
    place, = paths(svg, 'beyond s1')
    assert place.startswith(f'M{(LEFT + WIDTH - RIGHT)/2:.1f} {TOP:.1f}m')
    assert '<title>above the axis, up to 250</title>' in svg
    c = chart()
    c.line([0, 5, 10], [0., .5, 1.], 's1')
    assert 'beyond' not in c.markup('a', 't', 'd')


def test_values_that_are_not_finite_are_gaps():
    c = chart()
    c.line([0, 1, 2, 3, 4, 5], [0, .1, None, float('nan'), .5, .6], 's1')
    line, = paths(c.markup('a', 't', 'd'), 'line s1')
    assert line.count('M') == 2
    c.line([0, 1], [None, None], 's2')
    assert not paths(c.markup('a', 't', 'd'), 'line s2')


def test_dots_and_columns_have_titles_and_columns_cover_the_axis():
    c = chart()
    c.dots([1, 2], [.5, None], 's1', ['one', 'two'])
    c.hover([2, 6], ['left', 'right'])
    root = ElementTree.fromstring(c.markup('a', 't', 'd'))
    assert [e[0].text for e in root.findall('circle')] == ['one']
    columns = [(e[0].text, float(e.get('x')), float(e.get('width'))) for e in root.findall('rect')]
    assert [c[0] for c in columns] == ['left', 'right']
    assert columns[0][1] == LEFT
    assert abs(columns[0][1] + columns[0][2] - columns[1][1]) < .2
    assert abs(columns[1][1] + columns[1][2] - (WIDTH - RIGHT)) < .2


def test_many_points_are_one_element_and_those_without_a_value_are_left_out():
    c = chart()
    c.points([0, 5, 10], [0, None, 1], 's1')
    c.points([5], [.5], 's2', crossed=True)
    c.points([1], [None], 's3')
    svg = c.markup('a', 't', 'd')
    assert paths(svg, 'points s1') == [f'M{LEFT}.0 {HEIGHT - BOTTOM}.0h0M{WIDTH - RIGHT}.0 {TOP}.0h0']
    assert len(paths(svg, 'crosses s2')) == 1
    assert 's3' not in svg


def test_an_interval_is_drawn_from_end_to_end_with_its_value_and_a_mark():
    svg = interval(.5, 0., .75, Axis(-1, 1, 0, 0), 0., 'better')
    assert paths(svg, 'line') == ['M48.0 7H81.8']  # of 90 units, which start at 3
    assert paths(svg, 'axis') == ['M48.0 0V14']
    assert 'cx="70.5"' in svg
    assert 'class="axis"' not in interval(.5, 0., .75, Axis(0, 1, 0, 0))


@given(st.text(st.characters(exclude_categories=('Cs', 'Cc'), exclude_characters='\ufffe\uffff')))
def test_all_text_is_escaped(text):
    c = Chart(Axis(0, 10, 0, 0, text), Axis(0, 1, 0, 0))
    c.line([0, 10], [0, 1], 's1', text)
    c.dots([1], [.5], 's1', [text])
    root = ElementTree.fromstring(c.markup('a', text, text))
    assert (root.find('title').text or '', root.find('desc').text or '') == (text, text)
    assert (root.findall('text')[-1].text or '') == text
    assert '<' not in escaped(text)


def test_small_drawings_are_hidden_from_screen_readers_as_the_text_beside_them_says_it():
    drawn = sparkline([1, 2, 3], [1., None, 2.]), bar(.5), bar(None), interval(1, 0, 2, Axis(0, 3, 0, 0))
    for svg in drawn: assert 'aria-hidden="true"' in svg
    assert sparkline([1, 2], [None, None]) == sparkline([1], [0.], log=True) == ''
    assert 'class="part" width="32.0"' in bar(.5)
    assert 'class="part" width="64.0"' in bar(7.)
