"The header: other readers understand it, its digest covers the whole file, and false claims in it are refused."
import hashlib
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import damage
from miniai.checkpoint import CheckpointError, inspect, load, save, verify
from states import DTYPES, everything


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


def test_safetensors_reads_the_file_and_finds_tensors_by_their_paths(path):
    state = everything()
    save(path, state)
    with safe_open(str(path), 'pt') as f:
        meta = f.metadata()
        assert torch.equal(f.get_tensor('model/body.weight'), state['model']['body.weight'])
        assert torch.equal(f.get_tensor('opt/0/avg'), state['opt'][0]['avg'].permute(0, 2, 3, 1))
        assert torch.equal(f.get_tensor('views/point'), torch.tensor(2.5))
    assert json.loads(meta['state'])['epoch'] == 3


def test_all_tensors_are_aligned_for_readers_that_map_the_file(path):
    save(path, [torch.zeros(3, dtype=d) for d in DTYPES])
    n = int.from_bytes(path.read_bytes()[:8], 'little')
    header = json.loads(path.read_bytes()[8:8 + n])
    begins = [(e['data_offsets'][0], e['dtype']) for nm, e in header.items() if nm != '__metadata__']
    assert n % 8 == 0
    assert all(at % dict(F64=8, F32=4, I64=8, U64=8).get(nm, 1) == 0 for at, nm in begins)


def test_the_digest_is_the_sha256_of_the_file_with_zeros_in_its_place(path):
    save(path, everything())
    raw = path.read_bytes()
    digest = verify(path).encode()
    assert raw.count(digest) == 1
    assert hashlib.sha256(raw.replace(digest, b'0'*64)).hexdigest().encode() == digest


def test_a_header_longer_than_safetensors_reads_is_an_error_that_says_what_to_do(path, monkeypatch):
    monkeypatch.setattr('miniai.checkpoint.header.LONGEST', 10_000)
    with pytest.raises(ValueError, match='save long lists as tensors'): save(path, ['x']*5000)


def test_a_plain_safetensors_file_is_not_a_checkpoint(path):
    from safetensors.torch import save_file
    save_file(dict(a=torch.zeros(30)), str(path), metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match='a safetensors file, but not a checkpoint of miniai'): load(path)


def test_a_newer_format_says_to_update(path):
    path.write_bytes(damage.sealed({'__metadata__': damage.meta(version='2')}))
    with pytest.raises(CheckpointError, match=r"format version '2', where .* reads version 1: update"): load(path)


json_leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                        st.text(max_size=5), st.sampled_from(['t', 'float32', '00'*4, 'F32']))
json_keys = st.one_of(st.text(max_size=3), st.sampled_from([
    '$tuple', '$dict', '$ordered', '$int', '$float', '$bytes', '$scalar', '$tensor', '$floats', '$ints', 't', 'shape',
    'stride', 'dtype',
    'numpy', 'device']))
json_values = st.recursive(json_leaves, lambda x: st.one_of(st.lists(x, max_size=3),
                                                            st.dictionaries(json_keys, x, max_size=3)))


@given(json_values, json_values, json_values)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_a_sealed_file_holds_it_loads_or_is_refused(path, state, table, entry):
    for e, t, s in ((damage.tensor(), '{}', state), (damage.tensor(), table, {'$tensor': 't'}),
                    (damage.tensor(), {'t': table}, {'$tensor': 't'}),
                    (entry, '{}', {'$tensor': 't'}), (damage.tensor(), '{}', [state, {'$tensor': 't'}])):
        text = json.dumps(s, separators=(',', ':'))
        path.write_bytes(damage.sealed({'__metadata__': damage.meta(text, t), 't': e}, bytes(8)))
        read, *seen = (damage.outcome(f, str(path)) for f in (load, verify, inspect))
        assert read in ('refused', 'harmless')
        assert seen == [read, read]


@pytest.mark.parametrize(('n', 'dtype', 'width'), [(2**62 - 1, 'F64', 8), (2**60, 'F64', 8), (2**61, 'F32', 4)])
def test_an_array_of_more_bytes_than_numpy_counts_is_refused_by_all_and_the_largest_by_none(path, n, dtype, width):
    def write(n): path.write_bytes(damage.one(damage.tensor(dtype, (1,), (0, width)), data=bytes(width),
                                              table={'t': dict(shape=[n], stride=[0], numpy=True)}))
    write(n)
    for f in (load, verify, inspect):
        with pytest.raises(CheckpointError, match='impossible sizes'): f(path)
    write(2**63//width - 1)
    assert verify(path)
    assert load(path).shape == (2**63//width - 1,)


sizes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**40, 2**61, 2**62 - 1]), max_size=4)


@given(sizes, sizes, st.sampled_from(['F32', 'BF16', 'U8', 'BOOL', 'F64', 'I64']), st.booleans(), st.booleans())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_sizes_and_strides_a_sealed_file_claims_it_loads_or_is_refused(path, shape, stride, dtype, numpy,
                                                                                plain):
    row = ({} if plain else dict(shape=shape, stride=stride)) | (dict(numpy=True) if numpy else {})
    table = {'t': row} if row else {}
    width = dict(BF16=2, F32=4, U8=1, BOOL=1).get(dtype, 8)
    for n in (0, 8):
        entry = damage.tensor(dtype, shape if plain or not n else [8 // width], (0, n))
        path.write_bytes(damage.sealed({'__metadata__': damage.meta({'$tensor': 't'}, table), 't': entry}, bytes(n)))
        loaded, verified = (damage.outcome(f, str(path)) for f in (load, verify))
        assert loaded == verified in ('refused', 'harmless')
        if loaded == 'harmless' and math.prod(shape) < 2**20: load(path).sum()
