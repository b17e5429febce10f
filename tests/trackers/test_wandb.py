"Runs of Weights & Biases, kept offline and read back by its own reader."
import json
import struct
from importlib.util import find_spec

import pytest

from miniai.trackers.wandb import _logged_in
from tracked import expected, followed, without_times

installed = pytest.mark.skipif(not find_spec('wandb'), reason='wandb is not installed')


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    for nm in ('WANDB_API_KEY', 'WANDB_MODE', 'WANDB_BASE_URL', 'WANDB_PROJECT'): monkeypatch.delenv(nm, raising=False)
    monkeypatch.setenv('NETRC', str(tmp_path/'netrc'))
    return tmp_path


def records(path):
    "The records of a `.wandb` file: 7 bytes, then LevelDB's log: pieces of records in blocks of 32 KiB."
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, pieces = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
        left = -at % 2**15
        if 0 < left < 7:  # too short for a piece
            at += left
            continue
        _, length, kind = struct.unpack('<IHB', data[at:at + 7])
        pieces += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind not in (1, 4): continue  # the whole record, or its last piece
        yield Record.FromString(pieces)
        pieces = b''


@installed
@pytest.mark.filterwarnings('ignore')
def test_a_run_that_was_killed_and_resumed_has_one_id_and_all_figures(nobody, capfd):
    run = followed('wandb', nobody)
    files = sorted(nobody.glob('wandb/offline-run-*/*.wandb'))
    assert {f.stem.removeprefix('run-') for f in files} == {run.killed.run} == {run.resumed.run}
    figures, config, alerts = {}, {}, []
    for record in (r for f in files for r in records(f)):
        kind = record.WhichOneof('record_type')
        if kind == 'history':
            values = {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            for nm, x in values.items():
                if nm[0] != '_' and nm.partition('/')[0] != 'pictures': figures.setdefault(nm, {})[values['_step']] = x
        if kind == 'config':
            config |= {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in record.config.update}
        if kind == 'alert': alerts.append((record.alert.title, record.alert.text))
    assert without_times({nm: sorted(points.items()) for nm, points in figures.items()}) == expected()
    assert (config['note'], config['optimizer']) == ('a run', 'SGD')
    assert alerts == [('dead layer 1.ReLU', '99 % is 0. Raise it.')]
    assert list(nobody.glob('wandb/*/files/media/images/pictures/a curve*.png'))


def test_a_user_is_logged_in_by_a_key_in_the_environment_or_for_that_server_in_netrc(nobody, monkeypatch):
    assert not _logged_in()
    (nobody/'netrc').write_text('machine api.wandb.ai login user password key\n')
    assert _logged_in()
    monkeypatch.setenv('WANDB_BASE_URL', 'https://other.example')
    assert not _logged_in()
    (nobody/'netrc').write_text('not a netrc {')
    assert not _logged_in()
    monkeypatch.setenv('WANDB_API_KEY', 'key')
    assert _logged_in()
