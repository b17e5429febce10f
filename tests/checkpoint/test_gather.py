"gather: one file of a sharded model, with what a model's file has, and clear errors."
import pytest
import torch

from miniai.checkpoint import CheckpointError, gather, load, save
from sharded_folder import write_sharded


def test_the_file_has_the_whole_model_and_what_was_beside_it(tmp_path):
    model = dict(w=torch.randn(3, 4), b=torch.randn(4).bfloat16(), n=torch.tensor(3))
    write_sharded(tmp_path/'ck', model, opt=dict(big=1), file=dict(kind='model', net=None))
    gather(tmp_path/'ck', tmp_path/'m.safetensors')
    found = load(tmp_path/'m.safetensors')
    assert found.keys() == {'kind', 'net', 'model'}
    for nm, x in model.items(): assert found['model'][nm].equal(x)


def test_what_is_damaged_or_not_a_folder_is_refused_and_no_file_is_written(tmp_path):
    write_sharded(tmp_path/'ck', dict(w=torch.randn(3)), file={})
    data = bytearray((tmp_path/'ck'/'__0_0.distcp').read_bytes())
    data[40] ^= 1
    (tmp_path/'ck'/'__0_0.distcp').write_bytes(data)
    with pytest.raises(CheckpointError, match=r'ck: damaged: the sha256 of its part __0_0\.distcp'):
        gather(tmp_path/'ck', tmp_path/'m')
    save(tmp_path/'one', {})
    for path in (tmp_path/'one', tmp_path):
        with pytest.raises(CheckpointError, match='not the folder of a sharded model'): gather(path, tmp_path/'m')
    assert not (tmp_path/'m').exists()
