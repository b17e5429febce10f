"The three displays, each where it lives: a pseudo-terminal, a notebook kernel, and a pipe."
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from miniai.show import displays
from miniai.show.displays import NotebookDisplay, PlainDisplay, TerminalDisplay, best_display, draw_curves, say
from screen import Screen, in_notebook, in_terminals

PNG = b'\x89PNG\r\n\x1a\n'
ROW = dict(epoch='1', phase='train', accuracy='0.812', loss='0.523', seconds='3.1')


# Which display

def test_the_display_is_plain_in_a_pipe_and_a_terminal_display_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv('TERM', 'xterm')
    assert type(best_display()) is PlainDisplay
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    assert type(best_display()) is TerminalDisplay
    monkeypatch.setenv('TERM', 'dumb')
    assert type(best_display()) is PlainDisplay


def test_only_an_ipython_shell_with_a_kernel_is_a_notebook(monkeypatch, capsys):
    for shell, kind in [(SimpleNamespace(kernel=1), NotebookDisplay), (SimpleNamespace(), PlainDisplay),
                        (None, PlainDisplay)]:
        monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert type(best_display()) is kind


# Plain lines

def test_the_plain_display_prints_one_line_for_each_row_and_nothing_else(capsys):
    display = PlainDisplay()
    display.bar('epoch 1/1', 3, 10, '0.5')
    display.row(ROW)
    display.curves([([0], [1.])], ['train'])
    display.end_bar()
    display.text('a line')
    display.close()
    assert capsys.readouterr().out == 'epoch 1  phase train  accuracy 0.812  loss 0.523  seconds 3.1\na line\n'


# Terminal

BARS = f'''
from miniai.show.displays import TerminalDisplay
display = TerminalDisplay()
for epoch in range(2):
    for i in range(5): display.bar('epoch %d/2 train' % (epoch + 1), i, TOTAL, '0.693')
    display.end_bar()
    display.row({ROW} | dict(epoch=str(epoch)))
display.bar('epoch 2/2 valid', 0, TOTAL, '')
display.text('a line above the bar ' + 'and more of it '*20)
display.bar('epoch 2/2 valid', 1, TOTAL, '')
display.row(dict(other='7'))
display.bar('unfinished', 1, TOTAL, '')
display.close()
'''
FITS = '''
from small import Heard, learner, loaders, raising
from miniai.learner import MetricsCB, ProgressCB
from miniai.datasets import DataLoaders
from miniai.training import accuracy
import miniai.show.displays
miniai.show.displays.TerminalDisplay.seconds_between_updates = 0
class Comments(ProgressCB):
    def after_batch(self, learn):
        super().after_batch(learn)
        learn.dl.comment = 'at batch %d' % learn.iter
def fit(dls, *cbs): learner([MetricsCB(accuracy=accuracy), *cbs], dls=dls).fit(2)
fit(loaders(), ProgressCB(plot=True))
print('--')
fit(loaders(), Comments())
print('--')
class Stream:
    def __iter__(self): return iter(loaders(6).train)
fit(DataLoaders(Stream(), Stream()), ProgressCB())
print('--')
try: fit(loaders(), ProgressCB(), Heard({'after_step': raising(KeyboardInterrupt())}))
except KeyboardInterrupt: print('interrupted')
'''
LEFT = '''
from miniai.show.displays import TerminalDisplay
display = TerminalDisplay()
display.time_left = 16, 92.4
if display.shows_losses(): display.losses = [4, 3, 2.5, 1]
display.bar('epoch 1/5 train', 200, 469, '0.693')
display.time_left = 17, 3700
display.bar('epoch 1/5 train', 201, 469, '0.693')
display.close()
'''
COLOURED = "import os; os.environ.pop('NO_COLOR', None)\n" + BARS.replace('TOTAL', '10')
WIDTHS = (40, 60, 200)


@pytest.fixture(scope='module')
def terminals():
    "What bars (with and without a known total) and fits write to terminals where tqdm is told to colour its bars."
    scripts = dict(known=BARS.replace('TOTAL', '10'), unknown=BARS.replace('TOTAL', 'None'), fits=FITS,
                   left=LEFT, coloured=COLOURED)  # the last one changes the environment
    return in_terminals(scripts, WIDTHS, NO_COLOR='1', TQDM_COLOUR='green')


@pytest.mark.parametrize('columns', WIDTHS)
@pytest.mark.parametrize('total', ['known', 'unknown'])
def test_in_a_terminal_rows_stay_aligned_nothing_wraps_and_no_bar_is_left(terminals, columns, total):
    screen = Screen(columns).feed(terminals[total, columns])
    assert screen.wraps == 0
    assert screen.seen == ['epoch  phase  accuracy   loss  seconds', '    0  train     0.812  0.523      3.1',
                           '    1  train     0.812  0.523      3.1',
                           *wrapped('a line above the bar ' + 'and more of it '*20, columns - 1), 'other', '    7']


def wrapped(text, columns):
    "The lines of a text, broken at spaces, all but the first indented by 2."
    lines = ['']
    for word in text.split():
        if len(lines[-1]) + len(word) + (lines[-1].strip() != '') > columns: lines.append('  ')
        lines[-1] += (' ' if lines[-1].strip() else '') + word
    return lines


def bars(text): return [b.rstrip() for b in re.split(r'[\r\n]+', text) if re.search(r'epoch \d/2 ', b)]


@pytest.mark.parametrize('columns', WIDTHS)
def test_a_bar_fits_the_terminal_and_shows_label_counts_and_comment_whole(terminals, columns):
    for total, counts in dict(known='4/10', unknown='4').items():  # the fit's time left and losses are in other tests
        shown = bars(terminals[total, columns])
        assert max(map(len, shown)) < columns
        last = next(b for b in shown[::-1] if 'train' in b)
        assert re.fullmatch(rf'epoch 2/2 train (.* )?{counts}( \[.*\])? 0\.693', last)
    last = next(b for b in bars(terminals['known', columns])[::-1] if 'train' in b)
    bar = re.search(r'\|(.*)\|', last)
    assert len(bar[1]) >= 6 if columns > 40 else '[<' in last  # the time left comes first
    assert ('%' in last, 'batch/s' in last) == (columns >= 60, columns >= 200)


@pytest.mark.parametrize(('columns', 'time', 'curve'), [
    (40, '', ''), (60, '[<00:16, fit 01:32]', ''), (200, '[00:00<00:16, fit 01:32 left, #batch/s]', '  █▆▅▁')])
def test_a_bar_shows_the_time_left_of_the_fit_and_a_curve_where_they_fit(terminals, columns, time, curve):
    text = terminals['left', columns]
    first, second = re.findall(r'epoch 1/5 train [^\r\n]+', text)
    assert re.sub(r'[\d.?]+batch/s', '#batch/s', first.split('| ')[1].rstrip()) == ' '.join(
        filter(None, ['200/469', time, f'0.693{curve}']))
    assert ('fit 1:01:40' in second) == (columns >= 60)
    assert Screen(columns).feed(text).wraps == 0


def test_blocks_are_for_wide_terminals_with_unicode(monkeypatch):
    shown = {}
    for encoding in ('utf-8', 'ascii', None):
        for columns in ('99', '100'):
            monkeypatch.setenv('COLUMNS', columns)
            shown[encoding, columns] = TerminalDisplay(SimpleNamespace(encoding=encoding)).shows_losses()
    assert [where for where, shows in shown.items() if shows] == [('utf-8', '100')]


def test_a_text_is_wrapped_at_words_and_a_plain_one_is_not(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '21')
    text = '1 problem:\ndead layer: 99 % of it is zero'
    TerminalDisplay().text(text)
    PlainDisplay().text(text)
    assert capsys.readouterr().out.splitlines() == ['1 problem:', 'dead layer: 99 % of', '  it is zero',
                                                    *text.splitlines()]


def test_no_color_means_no_colour_codes(terminals):
    assert '\x1b' not in ''.join(terminals[name, w] for name in ('known', 'unknown', 'fits') for w in WIDTHS)
    assert '\x1b[32m' in terminals['coloured', 60]


def test_columns_are_as_wide_as_their_first_cells(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '80')
    display = TerminalDisplay()
    display.row(dict(a='1', name='a long value'))
    display.row(dict(a='22', name='short'))
    assert capsys.readouterr().out.splitlines() == ['    a          name', '    1  a long value', '   22         short']


def test_a_bar_moves_shows_its_comment_and_goes(capsys):
    display = TerminalDisplay()
    display.bar('epoch 1/2', 0, 10, '')
    display.bar('epoch 1/2', 5, 10, 'loss {0.5}')
    out = capsys.readouterr().out
    assert '5/10' in out
    assert 'loss {0.5}' in out
    display.end_bar()
    display.close()
    assert Screen(200).feed(out + capsys.readouterr().out).seen == []


@pytest.mark.parametrize('columns', WIDTHS)
def test_a_fit_in_a_terminal_leaves_its_table_for_any_loader_and_however_it_ends(terminals, columns):
    text = terminals['fits', columns]
    screen = Screen(columns).feed(text)
    fits = '\n'.join(screen.seen).split('--\n')
    for fit in fits[:3]:
        head, *rows = fit.splitlines()
        assert {'accuracy', 'loss', 'epoch'} <= set(head.split())
        assert [w for r in rows for w in r.split() if w in ('train', 'valid')] == ['train', 'valid']*2
        assert {len(r) for r in rows} == {len(head)}
    assert fits[3].splitlines() == ['interrupted']
    assert 'at batch 2' in text
    assert screen.wraps == 0


def test_the_screen_of_these_tests_sees_wrapping_and_leftovers():
    assert Screen(5).feed('abcdef').wraps == 1
    assert Screen(5).feed('abcde\n\rx').wraps == 0
    assert Screen(9).feed('bar 3\rok\n\r').seen == ['okr 3']
    assert Screen(9).feed('bar\r\x1b[K').seen == []
    with pytest.raises(ValueError, match='escape'): Screen(5).feed('\x1b[A')


# Notebook

def test_a_notebook_shows_a_table_a_bar_while_it_runs_and_live_curves():
    trains = '''
from small import Heard, learner, raising
from miniai.learner import MetricsCB, ProgressCB
from miniai.training import accuracy
learner([MetricsCB(accuracy=accuracy), ProgressCB(plot=True)]).fit(2)'''
    quits = "learner([ProgressCB(), Heard({'after_step': raising(KeyError('oh'))})]).fit(1)"
    where = f'import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})'
    _, outputs, quitting = in_notebook(where, trains, f'try: {quits}\nexcept KeyError: pass')
    htmls = [o.data['text/html'] for o in outputs if 'text/html' in o.get('data', {})]
    page, = htmls
    images = [o for o in outputs if 'image/png' in o.get('data', {})]
    assert page.count('<tr>') == 1 + 4
    for name in ('accuracy', 'loss', 'epoch'): assert f'<th>{name}</th>' in page
    assert page.count('<td>valid</td>') == 2
    assert '<progress' not in page
    assert len(images) == 1
    assert len(outputs) == 2
    for o in quitting: assert '<progress' not in o.data['text/html']


class Displayed:
    "Stands in for IPython's display: keeps what was shown and the updates."
    def __init__(self): self.shown = []
    def display(self, data, **kwargs):
        self.shown.append(data)
        return self

    def update(self, data, **kwargs): self.shown.append(data)
    def Image(self, png): return png


@pytest.fixture
def displayed(monkeypatch):
    d = Displayed()
    ipython = SimpleNamespace(display=d, get_ipython=lambda: SimpleNamespace(kernel=1), version_info=(9, 0))
    monkeypatch.setitem(sys.modules, 'IPython', ipython)
    monkeypatch.setitem(sys.modules, 'IPython.display', d)
    return d


def test_the_notebook_display_shows_bar_rows_and_lines_in_one_output(displayed):
    display = NotebookDisplay()
    display.bar('epoch 1/2', 3, 10, 'loss <0.5>')
    assert '<progress value="3" max="10"' in displayed.shown[-1]['text/html']
    assert '3 of 10 loss &lt;0.5&gt;' in displayed.shown[-1]['text/html']
    display.row(dict(a='1', b='<b>'))
    display.row(dict(a='2', b='x'))
    display.text('a & line')
    display.row(dict(a='3', b='y'))
    display.bar('stream', 7, None, '')
    page = displayed.shown[-1]['text/html']
    assert page.count('<table>') == 2
    assert page.count('<tr>') == 3 + 2
    assert '&lt;b&gt;' in page
    assert '<p>a &amp; line</p>' in page
    assert 'stream' in page
    assert '<progress' not in page
    display.close()
    assert 'stream' not in displayed.shown[-1]['text/html']
    text = displayed.shown[-1]['text/plain'].splitlines()
    assert [t.split() for t in text] == [['a', 'b'], ['1', '<b>'], ['2', 'x'], ['a', '&', 'line'],
                                         ['a', 'b'], ['3', 'y']]


def test_rows_of_other_columns_start_a_new_table(displayed):
    display = NotebookDisplay()
    display.row(dict(a='1'))
    display.row(dict(b='1'))
    assert displayed.shown[-1]['text/html'].count('<th>') == 2


def test_a_notebook_display_that_showed_nothing_closes_quietly(displayed):
    NotebookDisplay().close()
    assert displayed.shown == []


def test_curves_are_drawn_in_place_of_those_before(displayed):
    display = NotebookDisplay()
    for n in (2, 3): display.curves([(range(n), [1.]*n)], ['train'])
    assert [s[:8] for s in displayed.shown] == [PNG, PNG]


# Curves

def drawn(monkeypatch, curves, labels):
    from matplotlib.figure import Figure
    figs, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda fig, *args, **kw: (figs.append(fig), save(fig, *args, **kw)))
    assert draw_curves(curves, labels)[:8] == PNG
    return figs[0].axes[0]


def test_a_picture_has_the_curves_with_a_legend_where_there_are_two(monkeypatch):
    ax = drawn(monkeypatch, [(range(30), [1.]*30), ([10, 20], [2., 3.])], ['train', 'eval'])
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.]*30, [2., 3.]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['train', 'eval']
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('batch', 'loss')


def test_one_curve_needs_no_legend(monkeypatch):
    assert drawn(monkeypatch, [([0, 1], [1., float('nan')])], ['train']).get_legend() is None


def test_a_long_curve_is_thinned(monkeypatch):
    ax = drawn(monkeypatch, [(range(10000), [float(i) for i in range(10000)])], ['train'])
    assert ax.lines[0].get_xdata().tolist() == list(range(0, 10000, 5))


def test_pyplots_figures_are_left_alone():
    draw_curves([([0], [1.])], ['train'])
    assert plt.get_fignums() == []


def test_every_curve_needs_a_label():
    with pytest.raises(ValueError, match='zip'): draw_curves([([0], [1.])], ['a', 'b'])


def test_in_a_narrow_terminal_no_word_is_cut_and_a_wide_row_is_a_text(monkeypatch):
    monkeypatch.setenv('COLUMNS', '40')
    file = io.StringIO()
    display = TerminalDisplay(file)
    display.row(dict(epoch='1', loss='0.25'))
    display.row(dict(epoch='1', phase='train', accuracy='0.75', loss='0.25', top_five_accuracy='0.5', seconds='12.3'))
    display.text('results in /a/path/that/is/longer/than/the/terminal/is-wide')
    assert file.getvalue().splitlines() == [
        'epoch   loss', '    1   0.25', 'epoch 1  phase train  accuracy 0.75', '  loss 0.25  top_five_accuracy 0.5',
        '  seconds 12.3', 'results in', '  /a/path/that/is/longer/than/the/terminal/is-wide']


def test_what_is_said_is_wrapped_in_a_terminal_and_printed_elsewhere(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '20')
    text = 'some words in a line that is long'
    say(text)
    assert capsys.readouterr().out == f'{text}\n'
    monkeypatch.setattr(displays, 'best_display', lambda: TerminalDisplay())
    say(text)
    assert capsys.readouterr().out == 'some words in a\n  line that is long\n'
