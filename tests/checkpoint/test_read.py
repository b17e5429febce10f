"Files that cannot be trusted: each is refused by one error that names it, and none can make anything happen."
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import damage
from miniai.checkpoint import CheckpointError, disk, inspect, load, save, verify
from states import bits, everything, same

GOLDEN = Path(__file__).parents[1]/'golden'
HARMLESS = {'another shape', 'strides zero', 'device of code', 'py/object', 'dunder keys', 'config that names code',
            'template'}


@pytest.fixture
def path(tmp_path):
    save(tmp_path/'a.safetensors', everything())
    return tmp_path/'a.safetensors'


# Damage

def test_every_damaged_file_is_refused_and_named(tmp_path):
    assert damage.damaged(str(tmp_path), 400) == dict(files=400, refused=400, other=0)


def test_every_truncation_is_refused(path):
    raw = path.read_bytes()
    for n in range(0, len(raw), 7):
        path.write_bytes(raw[:n])
        with pytest.raises(CheckpointError): verify(path)


def test_the_reason_says_what_is_wrong(path):
    raw = path.read_bytes()
    for bad, said in [(raw[:-1], 'cut: '), (raw + b'\0', '1 bytes follow its end'),
                      (raw[:-1] + b'\x55', 'damaged: its sha256'), (b'PK\x03\x04' + raw, 'header of'),
                      (raw[:3], 'only 3 bytes')]:
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=said) as e: load(path)
        assert e.value.path == str(path)


def test_a_plain_safetensors_file_is_no_checkpoint(path):
    from safetensors.torch import save_file
    save_file(dict(a=torch.zeros(30)), str(path), metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match='a safetensors file, but not a checkpoint of miniai'): load(path)


def test_a_file_of_a_later_format_says_so(path):
    path.write_bytes(damage.sealed({'__metadata__': damage.meta(version='2')}))
    with pytest.raises(CheckpointError, match="written by a later miniai: format '2'"): load(path)


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    for f in (load, verify, inspect):
        with pytest.raises(FileNotFoundError): f(tmp_path/'none')


@pytest.mark.parametrize('read', [load, verify, inspect])
def test_a_path_in_bytes_is_the_same_path_and_one_with_a_nul_is_a_checkpoint_error_that_names_it(path, read):
    assert bits(read(os.fsencode(path))) == bits(read(path))
    for bad in ('a\0b', b'a\0b', Path('a\0b')):
        with pytest.raises(CheckpointError, match='no path: embedded null') as e: read(bad)
        assert e.value.path == 'a\0b'
    path.write_bytes(b'')
    with pytest.raises(CheckpointError, match=f'^{path}: '): read(os.fsencode(path))


def test_a_disk_that_cannot_read_is_a_checkpoint_error_too(path, monkeypatch):
    monkeypatch.setattr(disk, 'read_into', lambda *args: (_ for _ in ()).throw(OSError(5, 'Input/output error')))
    with pytest.raises(CheckpointError, match='cannot be read: Input/output error'): load(path)


PEAK = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from damage import peak_of_reading
from miniai.checkpoint import save, load
save(sys.argv[1] + '.small', torch.zeros(3)), load(sys.argv[1] + '.small')
print(peak_of_reading(sys.argv[1]))
"""


@pytest.mark.parametrize('bad', [False, True])
def test_reading_takes_no_more_memory_than_twice_the_file(path, bad):
    save(path, [torch.randn(5_000_000), torch.randn(5_000_000)])
    if bad:
        with path.open('r+b') as f: f.seek(-5, os.SEEK_END), f.write(b'wrong')
    done = subprocess.run([sys.executable, '-c', PEAK, str(path), str(Path(__file__).parents[1])], capture_output=True,
                          text=True, check=True)
    assert 0.9 < float(done.stdout) < 2


# Malice

@pytest.fixture(scope='module')
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')
    done = subprocess.run([sys.executable, damage.__file__, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hostile_files_are_refused_or_harmless(read):
    assert len(read) >= 50
    assert {nm for nm, r in read.items() if set(r['results'][:2]) == {'harmless'}} <= HARMLESS
    odd = {nm: r['results'] for nm, r in read.items() if set(r['results']) - {'refused', 'harmless'}}
    assert odd.keys() == {'link to itself'}  # which the system does not open
    assert set(odd['link to itself']) == {odd['link to itself'][0]}


def test_hostile_files_execute_import_open_and_send_nothing(read):
    assert {nm: r['seen'] for nm, r in read.items() if r['seen']} == {}
    assert not os.path.exists('/tmp/miniai-was-here')


def test_the_audit_hook_sees_what_a_pickle_does(tmp_path):
    script = f"import sys, pickle; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import damage; seen = []\n" \
             "sys.addaudithook(lambda e, a: seen.append(e) if e.startswith(damage.BAD) else None)\n" \
             "pickle.loads(pickle.dumps(print)); eval('1'); print(seen)"
    said = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True).stdout
    assert all(e in said for e in ('pickle.find_class', 'compile', 'exec'))


json_leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                        st.text(max_size=5), st.sampled_from(['t', 'float32', '00'*4, 'F32']))
json_keys = st.one_of(st.text(max_size=3), st.sampled_from([
    '$tuple', '$dict', '$ordered', '$int', '$float', '$bytes', '$scalar', '$tensor', '$floats', '$ints', 't', 'shape',
    'stride', 'dtype',
    'numpy', 'device']))
json_values = st.recursive(json_leaves, lambda x: st.one_of(st.lists(x, max_size=3),
                                                            st.dictionaries(json_keys, x, max_size=3)))


@given(json_values, json_values, json_values)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_a_sealed_file_holds_it_loads_or_is_refused(path, state, table, entry):
    for e, t, s in ((damage.tensor(), '{}', state), (damage.tensor(), table, {'$tensor': 't'}),
                    (damage.tensor(), {'t': table}, {'$tensor': 't'}),
                    (entry, '{}', {'$tensor': 't'}), (damage.tensor(), '{}', [state, {'$tensor': 't'}])):
        path.write_bytes(damage.sealed({'__metadata__': damage.meta(json.dumps(s), t), 't': e}, bytes(8)))
        read, *seen = (damage.outcome(f, str(path)) for f in (load, verify, inspect))
        assert read in ('refused', 'harmless')
        assert seen == [read, read]


sizes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**40, 2**61, 2**62 - 1]), max_size=4)


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


@given(sizes, sizes, st.sampled_from(['F32', 'BF16', 'U8', 'BOOL', 'F64', 'I64']), st.booleans(), st.booleans())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_sizes_and_strides_a_sealed_file_claims_it_loads_or_is_refused(path, shape, stride, dtype, numpy,
                                                                                plain):
    table = {'t': dict(numpy=numpy) if plain else dict(shape=shape, stride=stride, numpy=numpy)}
    width = dict(BF16=2, F32=4, U8=1, BOOL=1).get(dtype, 8)
    for n in (0, 8):
        entry = damage.tensor(dtype, shape if plain or not n else [8 // width], (0, n))
        path.write_bytes(damage.sealed({'__metadata__': damage.meta({'$tensor': 't'}, table), 't': entry}, bytes(n)))
        loaded, verified = (damage.outcome(f, str(path)) for f in (load, verify))
        assert loaded == verified in ('refused', 'harmless')
        if loaded == 'harmless' and math.prod(shape) < 2**20: load(path).sum()


# Files of earlier versions

def test_golden_files_load_to_what_was_saved():
    assert same(load(GOLDEN/'format_1_everything.safetensors'), everything())
    state = load(GOLDEN/'format_1_training.safetensors')
    assert (state['epoch'], state['batch'], state['optimizer']['param_groups'][0]['lr']) == (2, 17, 0.01)
    assert state['model']['0.weight'].tolist() == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]
    assert state['optimizer']['state'][0]['exp_avg'].dtype == torch.bfloat16
    assert state['model']['0.weight'] is state['model']['tied']
    assert same(load(GOLDEN/'format_1_records.safetensors'), records())


def records(): return dict(lr=[i/7 for i in range(70)], n=[i - 2**62 for i in range(70)], short=[.5, math.inf])


@pytest.mark.parametrize('name', ['everything', 'training', 'records'])
def test_golden_files_verify_and_are_small(name):
    path = GOLDEN/f'format_1_{name}.safetensors'
    assert verify(path) == inspect(path).sha256
    assert path.stat().st_size < 8000
