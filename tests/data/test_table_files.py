"Tables from files and other things, and which of their rows are for training and for validation."
import numpy as np
import pandas as pd
import pytest
import torch

from miniai.data.split import split_rows
from miniai.data.table_files import TableError, one_or_many, read_table, split_table, value_name

DF = pd.DataFrame(dict(a=[1., None, 3.5, 4.], b=['x', 'ü', None, 'z'], c=[1, 2, 3, 4], d=[True, False, True, True]))
WRITERS = {'csv': dict(index=False), 'tsv': dict(index=False, sep='\t'), 'parquet': {}, 'json': dict(orient='records'),
           'jsonl': dict(orient='records', lines=True)}


def written(path, df=DF):
    ext = path.suffix[1:].lower()
    name = {'tsv': 'csv', 'jsonl': 'json'}.get(ext, ext)
    getattr(df, f'to_{name}')(path, **WRITERS[ext])
    return path


@pytest.mark.parametrize('name', ['t.csv', 't.CSV', 't.tsv', 't.parquet', 't.json', 't.jsonl'])
@pytest.mark.parametrize('make', [str, lambda p: p])
def test_a_file_is_the_table_that_pandas_wrote(tmp_path, name, make):
    found = read_table(make(written(tmp_path/name)))
    pd.testing.assert_frame_equal(found, DF, check_dtype=False)


@pytest.mark.parametrize('name', ['t.json', 't.jsonl'])
def test_bools_with_gaps_and_texts_of_digits_stay_what_they_are_in_json(tmp_path, name):
    df = pd.DataFrame(dict(a=[True, None, False], b=['007', '2020-01-01', None]), dtype=object)
    found = read_table(written(tmp_path/name, df))
    assert [found[c].dropna().tolist() for c in 'ab'] == [[True, False], ['007', '2020-01-01']]


def test_a_json_of_columns_is_a_table(tmp_path):
    DF.to_json(tmp_path/'t.json')
    assert read_table(tmp_path/'t.json').c.tolist() == [1, 2, 3, 4]


def test_the_index_that_to_csv_writes_is_no_column(tmp_path):
    DF.to_csv(tmp_path/'t.csv')
    assert list(read_table(tmp_path/'t.csv').columns) == list('abcd')


@pytest.mark.parametrize('make', [
    lambda: DF.to_dict('records'), lambda: DF.to_dict('list'), lambda: {c: DF[c] for c in DF},
    lambda: pytest.importorskip('pyarrow').Table.from_pandas(DF),
    lambda: pytest.importorskip('datasets').Dataset.from_pandas(DF)])
def test_other_tables_are_data_frames(make):
    pd.testing.assert_frame_equal(read_table(make()).reset_index(drop=True), DF, check_dtype=False)


def test_a_data_frame_is_not_copied():
    assert read_table(DF) is DF


@pytest.mark.parametrize(('row', 'single'), [
    (dict(a=1., b='x'), True), (pd.Series(dict(a=1., b='x')), True), ([dict(a=1., b='x')], False),
    (pd.DataFrame([dict(a=1., b='x')]), False)])
def test_a_row_is_told_from_a_table_of_one(row, single):
    df, is_single = one_or_many(row)
    assert (df.to_dict('records'), is_single) == ([dict(a=1., b='x')], single)


@pytest.mark.parametrize(('name', 'content', 'said'), [
    ('t.xlsx', b'', r'no table that can be read: give \.csv'), ('t.csv', b'', 'cannot read .*t.csv'),
    ('t.csv', b'a,b\n', 't.csv has no rows'), ('t.json', b'{', 'cannot read'), ('t.json', b'5', 'cannot read'),
    ('t.parquet', b'hello', 'cannot read'),
    ('t.csv', b'a\n\xff\xfe\n', 'cannot read'), ('t.csv', b'a,b\n1,2\n1,2,3\n', 'cannot read .*line 3')])
def test_a_file_that_is_no_table_is_named_with_the_reason(tmp_path, name, content, said):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(TableError, match=said): read_table(tmp_path/name)


def test_other_things_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no file nowhere\.csv'): read_table('nowhere.csv')
    with pytest.raises(TableError, match='no table can be made of type int'): read_table(5)
    with pytest.raises(TableError, match='cannot read'): read_table(tmp_path.rename(tmp_path.with_suffix('.csv')))


def ids(parts): return [part.c.tolist() for part in parts]


@pytest.mark.parametrize('seed', [0, 7])
def test_a_fraction_is_drawn_with_the_seed(seed):
    df = pd.DataFrame(dict(c=range(20)), index=range(100, 120))
    assert ids(split_table(df, .3, seed)) == [rows.tolist() for rows in split_rows(20, .3, seed)]


@pytest.mark.parametrize('valid', [
    [3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1]), pd.Series([3, 1]), pd.Index([3, 1])])
def test_indices_count_rows_from_0_whatever_the_index(valid):
    assert ids(split_table(DF.set_index(pd.Index([9, 9, 0, 1])), valid, 0)) == [[1, 3], [4, 2]]


@pytest.mark.parametrize('valid', [DF.d, DF.d.to_numpy(), torch.tensor(DF.d.to_numpy())])
def test_a_mask_says_which_rows_are_for_validation(valid):
    assert ids(split_table(DF, valid, 0)) == [[2], [1, 3, 4]]


@pytest.mark.parametrize(('values', 'train', 'held_out'), [
    (['train', 'valid', 'test', 'train'], [1, 4], [2]), (['train', 'test', 'Test', 'train'], [1, 4], [2, 3]),
    ([True, False, False, True], [2, 3], [1, 4]), ([0, 1, 0, 0], [1, 3, 4], [2]), ([0., 1., None, 0.], [1, 3, 4], [2]),
    (['Validation', 'val', None, 'x'], [3, 4], [1, 2]), (['0', '1', '0', '0'], [1, 3, 4], [2])])
def test_a_column_says_which_rows_are_for_validation_and_is_no_input(values, train, held_out):
    parts = split_table(DF.assign(split=values), 'split', 0)
    assert ids(parts) == [train, held_out]
    assert [list(part.columns) for part in parts] == [list('abcd')]*2


def test_another_table_is_for_validation(tmp_path):
    other = DF.assign(c=[5, 6, 7, 8])
    for valid in (other, written(tmp_path/'v.csv', other), str(tmp_path/'v.csv'), other.to_dict('records')):
        assert ids(split_table(DF, valid, 0)) == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(('valid', 'error', 'said'), [
    (0, ValueError, 'between 0 and 1, got 0'), (1., ValueError, 'between 0 and 1, got 1.0'),
    (.01, ValueError, 'leaves none for validation'), ([0, 0], ValueError, 'the same index twice'),
    ([4], ValueError, 'there are 4 samples'), ([0, 1, 2, 3], ValueError, 'leaves none for training'),
    ('split', TableError, "valid is 'split', which is neither a column of the table nor a file"),
    ('b', TableError, "the column b names no row for validation: it should say 'train' or 'valid'.*has nan, x, z, ü"),
    ('d2', TableError, 'no rows are left for training'),
    (None, TableError, 'valid must be a fraction.*got type NoneType'),
    (slice(2), TableError, 'got type slice'), ((DF, DF), TableError, 'got type tuple'),
    ('nowhere.csv', FileNotFoundError, 'no file nowhere.csv'),
    (DF.iloc[:0], TableError, 'no rows are left for validation')])
def test_what_cannot_split_a_table_is_an_error_that_says_what_can(valid, error, said):
    with pytest.raises(error, match=said): split_table(DF.assign(d2=1), valid, 0)


def test_a_table_without_rows_is_an_error():
    with pytest.raises(TableError, match='the table has no rows'): split_table(DF.iloc[:0], .2, 0)


@pytest.mark.parametrize(('v', 'name'), [
    (1, '1'), (1., '1'), (np.float32(2), '2'), (np.int8(3), '3'), (1.5, '1.5'), (True, 'True'),
    (np.bool_(False), 'False'), ('1', '1'), ('x', 'x'), (float('inf'), 'inf'), (float('nan'), 'nan'), (-0., '0'),
    (None, 'None')])
def test_a_value_has_the_same_name_whatever_its_type(v, name):
    assert value_name(v) == name
