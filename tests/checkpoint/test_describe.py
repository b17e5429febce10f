"Descriptions of checkpoints: readable tables of printable text, whatever the file holds."
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.checkpoint import describe, inspect, save
from miniai.checkpoint.describe import printable, size_in_words
from tiny import run


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save('a.safetensors', dict(epoch=3, note='x'*200, model={'w': torch.zeros(2, 300, dtype=torch.bfloat16),
                                                             'n': torch.tensor(1)}))
    return 'a.safetensors'


@pytest.mark.parametrize(('n', 'said'), [(0, '0 B'), (999, '999 B'), (1000, '1.0 kB'), (1_234_567, '1.2 MB'),
                                         (10**9, '1.0 GB'), (10**16, '10000.0 TB')])
def test_a_size_has_a_readable_unit(n, said): assert size_in_words(n) == said


def test_a_description_is_tables_of_origin_values_and_tensors(path):
    about, values, tensors = describe(inspect(path)).split('\n\n')
    assert [line.split()[0] for line in about.splitlines()] == ['file', 'saved', 'by', 'format', 'size', 'sha256']
    assert values.splitlines()[0] == 'epoch  3'
    assert max(map(len, values.splitlines())) < 100
    assert tensors.splitlines() == ['tensor   dtype     shape    size', 'model/n  int64     0-d      8 B',
                                    'model/w  bfloat16  2 x 300  1.2 kB']


def test_tensors_are_sorted_by_name_with_numbers_by_size(path):
    save(path, {f'x{i}': torch.zeros(1, dtype=d) for i, d in ((10, torch.float64), (9, torch.uint8), (2, torch.int16))})
    rows = describe(inspect(path)).split('\n\n')[-1].splitlines()
    assert [line.split()[0] for line in rows] == ['tensor', 'x2', 'x9', 'x10']


def test_a_state_without_tensors_or_values_has_one_table(path):
    save(path, [])
    assert len(describe(inspect(path)).split('\n\n')) == 1


def test_verify_prints_a_line_a_file_and_exits_0_if_all_are_whole(path, capsys):
    assert run('checkpoint', 'verify', path, path) == 0
    assert capsys.readouterr().out == f'{path}: intact, sha256 {inspect(path).sha256}\n'*2


def test_verify_exits_1_if_one_is_not_and_says_why(path, capsys):
    Path('b').write_bytes(Path(path).read_bytes()[:-1])
    assert run('checkpoint', 'verify', 'b', 'none', path) == 1
    first, second, third = capsys.readouterr().out.splitlines()
    assert (first[:13], second) == ('b: truncated:', 'none: No such file or directory')
    assert third.startswith('a.safetensors: intact, ')


def test_verify_wants_a_file(path, capsys):
    assert run('checkpoint', 'verify') == 2
    assert 'name at least one checkpoint' in capsys.readouterr().err


def test_show_prints_the_description(path, capsys):
    assert run('checkpoint', 'show', path) == 0
    assert capsys.readouterr().out == describe(inspect(path)) + '\n'


def test_show_of_another_file_exits_1_and_names_it(path, capsys):
    Path('b').write_text('hello')
    assert run('checkpoint', 'show', 'b') == 1
    said = 'not a checkpoint of miniai, or truncated or damaged: use another file'
    assert capsys.readouterr().err == f'miniai: error: b: {said}\n'
    assert run('checkpoint', 'show', 'none') == 1
    assert 'No such file' in capsys.readouterr().err


def test_the_help_lists_both(path, capsys):
    run('checkpoint', '--help')
    said = capsys.readouterr().out
    assert 'verify' in said
    assert 'show' in said
    assert max(map(len, said.splitlines())) <= 80


# Hostile and unusual contents

@settings(max_examples=50)
@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.just(torch.zeros(1)))))
def test_whatever_a_file_holds_its_description_is_printable_with_one_line_for_each_item(tmp_path_factory, state):
    path = tmp_path_factory.mktemp('described')/'a'
    save(path, state)
    there = inspect(path)
    lines = describe(there).split('\n')
    assert all(line.isprintable() for line in lines)
    blank = bool(there.scalars) + 2*bool(there.tensors)  # between the tables, and the last one's header
    assert len(lines) == 6 + len(there.scalars) + len(there.tensors) + blank


def test_text_from_the_metadata_is_escaped_and_cut(path):
    info = replace(inspect(path), saved='\x1b[2J', miniai='1\nfile  other', torch='x'*10**6, version='\x9b')
    saved, by, kind = describe(info).splitlines()[1:4]
    assert (saved, kind) == ('saved   \\x1b[2J', 'format  \\x9b')
    assert (by[:39], by[-2:], len(by)) == ('by      miniai 1\\nfile  other, torch xx', 'x…', 208)


@pytest.mark.parametrize(('text', 'said'), [
    ('plain é 😀', 'plain é 😀'), ('\x1b[31m\x07\r\n', '\\x1b[31m\\x07\\r\\n'), ('\udcff', '\\udcff'),
    ('\u202e\u2028', '\\u202e\\u2028'), ('\\n', '\\n')])
def test_only_printable_characters_are_shown_as_they_are(text, said): assert printable(text) == said


def test_a_number_of_any_length_is_described(path):
    save(path, {'n': 10**5000, '7'*5000: torch.zeros(1), 'small': -2**64})
    values, tensors = describe(inspect(path)).split('\n\n')[1:]
    assert [' '.join(line.split()) for line in values.splitlines()] == ['n an int of 16,610 bits', f'small {-2**64}']
    assert tensors.splitlines()[1].startswith('7777')


def test_a_long_name_is_cut(path):
    save(path, {'k'*10**6: 1, 't'*10**6: torch.zeros(1)})
    assert max(map(len, describe(inspect(path)).splitlines())) < 300
