"Parts of sharded tensors: states without them, digests, and what is refused."
import pickle
from collections import OrderedDict

import pytest
import torch

from miniai.checkpoint.parts import check_parts, filled, mapped, own_digests, read_parts, sharded_in, taken_out
from miniai.checkpoint.tree import Sharded, flatten, unflatten


def test_each_leaf_is_mapped_with_its_path():
    nest = dict(a=[1, (2, OrderedDict(b=3))])
    paths = dict(a=[(1, 'a', 0), ((2, 'a', 1, 0), OrderedDict(b=(3, 'a', 1, 1, 'b')))])
    assert mapped(lambda x, path: (x, *path), nest) == paths


def test_a_sharded_tensor_is_written_by_name_and_filled_in_again():
    x = Sharded('model/w', (3, 2), 'float32')
    json, leaves = flatten(dict(model=dict(w=x)))
    assert json == dict(model=dict(w={'$sharded': ['model/w', [3, 2], 'float32']}))
    assert unflatten(json, {}) == dict(model=dict(w=x))
    assert not leaves
    assert sharded_in([x, 1]) == {'model/w': x}
    assert filled(dict(model=dict(w=x)), {'model/w': 5}) == dict(model=dict(w=5))


def test_plain_tensors_stay_in_the_state():
    state = dict(w=torch.ones(2))
    assert taken_out(state) == (state, {})


def test_only_the_files_as_they_were_written_pass(tmp_path):
    (tmp_path/'__1_0.distcp').write_bytes(b'one')
    (tmp_path/'__11_0.distcp').write_bytes(b'eleven')
    parts = own_digests(tmp_path, 1)
    assert parts == {'__1_0.distcp': [3, '7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed']}
    check_parts(tmp_path, parts)
    (tmp_path/'__1_0.distcp').write_bytes(b'two')
    with pytest.raises(ValueError, match=r'the sha256 of its part __1_0\.distcp is not as stated'):
        check_parts(tmp_path, parts)
    check_parts(tmp_path, parts, 1, 2)  # the share of another process
    (tmp_path/'__1_0.distcp').unlink()
    with pytest.raises(ValueError, match=r'its part __1_0\.distcp is missing'): check_parts(tmp_path, parts, 1, 2)


class Code:
    def __reduce__(self): return print, ('code was run',)


def test_a_metadata_pickle_cannot_run_code(tmp_path, capsys):
    (tmp_path/'.metadata').write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match=r'its \.metadata names builtins\.print'): read_parts(tmp_path, {})
    assert 'code' not in capsys.readouterr().out
