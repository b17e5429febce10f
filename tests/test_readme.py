"The README's code blocks run, in order, as one program."
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

README = (Path(__file__).resolve().parents[1]/'README.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', README, re.M | re.S)


@pytest.fixture
def small_sample(monkeypatch):
    "The first 1,000 images of the sample, so that the blocks take seconds."
    import miniai
    whole = miniai.fashion_mnist(source='sample', quiet=True)
    few = dict(x_train=whole.x_train[:1000], y_train=whole.y_train[:1000], x_valid=whole.x_valid[:200],
               y_valid=whole.y_valid[:200])
    part = replace(whole, **few)
    monkeypatch.setattr(miniai, 'fashion_mnist', lambda: part)


def test_the_blocks_of_the_readme_run_and_do_what_they_show(small_sample, capsys, tmp_path, monkeypatch):
    assert len(BLOCKS) == 6
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS: exec(compile(block, 'README.md', 'exec'), names)
    learn = names['learn']
    rows = capsys.readouterr().out.splitlines()
    assert len([r for r in rows if r.startswith('accuracy')]) == 2*(3 + 1 + 1 + 2 + 1 + 2 + 1)
    assert [r['epoch'] for r in learn.history] == [0, 0, 1, 1, 2, 2]
    assert learn.history[-1]['phase'] == 'eval'
    assert len(plt.get_fignums()) == 2
    assert type(learn.opt).__name__ == 'Adam'


def test_the_first_block_has_eight_lines_and_the_next_two_five():
    assert [len(b.splitlines()) for b in BLOCKS[:3]] == [8, 5, 5]
