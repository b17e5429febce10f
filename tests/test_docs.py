"The pages of docs/ run from top to bottom, each as one program."
import re
from pathlib import Path

import pytest

from miniai.resume.prove import Proof

PAGES = sorted((Path(__file__).resolve().parents[1]/'docs').glob('*.md'))


def cells(text):
    return re.findall(r'^```\{code-cell\}[^\n]*\n(.*?)^```$', text, re.M | re.S)


def run(page, names):
    "Run the cells of a page in the namespace `names`, its timings once."
    for cell in cells(page.read_text()):
        short = re.sub(r'^repeats = \d+', 'repeats = 1', cell, flags=re.M)
        exec(compile(short, page.name, 'exec'), names)


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request): return request.param


def test_the_cells_of_a_page_run_in_order_in_one_namespace(page):
    assert cells(page.read_text())
    run(page, {'__name__': page.stem})


def test_a_page_is_a_notebook_that_jupytext_can_open(page):
    text = page.read_text()
    assert text.startswith('---\njupytext:\n')
    assert 'format_name: myst' in text
    assert text.count('```') == 2*len(cells(text))


def test_the_page_on_checkpoints_shows_an_exact_resume_and_a_refusal(capsys):
    page = next(page for page in PAGES if page.stem == 'checkpoints')
    run(page, {})
    out = capsys.readouterr().out
    assert '\nTrue\n' in out
    assert "model 0.weight was '(32, 20) float32' in the checkpoint and is '(40, 20) float32' here" in out
    assert "['best.safetensors', 'checkpoint-00003-3-00000000.safetensors']" in out
    shown = re.search(r'^    the same to the bit: (.*)$', page.read_text(), re.M)
    assert shown[0].strip() == str(Proof([], shown[1], {}))


def test_the_rules_of_the_page_learn_and_what_they_may_not_do_is_said(capsys):
    names = {}
    run(next(page for page in PAGES if page.stem == 'your_own_rule'), names)
    for name in ('SGD', 'Momentum', 'Adam', 'Accord'):
        first, last = names['curves'][name][0], names['curves'][name][-1]
        assert last < first/5, name
    out = capsys.readouterr().out
    assert 'write where(condition, a, b) in place of if' in out
    assert 'rule cannot be traced' in out
    assert 'the model is small' in out
