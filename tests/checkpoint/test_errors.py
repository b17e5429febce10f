"Errors say what is wrong, where, and what to do; their attributes say it to programs."
import errno

import pytest

from miniai.checkpoint import CheckpointError, FolderInUseError, SaveError, load, save


def test_a_missing_folder_is_a_save_error_with_path_bytes_and_cause(tmp_path):
    path = tmp_path/'no'/'a'
    said = fr'^{path} was not saved: No such file or directory \(0 of [\d,]+ bytes were written\); nothing has changed'
    with pytest.raises(SaveError, match=said) as e: save(path, 1)
    assert (e.value.path, e.value.written, e.value.errno) == (str(path), 0, errno.ENOENT)
    assert type(e.value.cause) is FileNotFoundError
    assert e.value.cause is e.value.__cause__
    assert e.value.wanted > 100


@pytest.mark.parametrize(('cause', 'said'), [(OSError(28, 'No space'), 'No space'), (ValueError('why'), 'why'),
                                             (MemoryError(), 'MemoryError')])
def test_a_save_error_gives_the_reason_in_words(cause, said):
    e = SaveError('a', 2000, 1000, cause, 'the old file stays')
    assert str(e) == f'a was not saved: {said} (1,000 of 2,000 bytes were written); the old file stays'


def test_a_checkpoint_error_is_a_value_error_with_path_and_reason(tmp_path):
    (tmp_path/'a').write_bytes(b'')
    with pytest.raises(CheckpointError) as e: load(tmp_path/'a')
    assert isinstance(e.value, ValueError)
    assert str(e.value) == f'{e.value.path}: {e.value.reason}' == f'{tmp_path}/a: {e.value.reason}'


def test_a_folder_in_use_names_the_process_and_what_to_do():
    e = FolderInUseError('runs', '12', 'here')
    assert str(e) == 'runs is in use by process 12 on here: wait for it to end, or use another folder'
    assert (e.folder, e.pid, e.host) == ('runs', '12', 'here')
