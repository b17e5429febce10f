"ShardedSaver: folders that appear whole, in the background too, and what becomes of failures."
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from miniai.checkpoint import SaveError, inspect, load, newest_valid, saving_sharded, verify
from miniai.checkpoint.parts import REST, taken_out
from miniai.checkpoint.saving_sharded import ShardedSaver
from miniai.distributed.ranks import rank
from ranks import run_ranks


def state_of(n):
    mesh = init_device_mesh('cpu', (2,))
    whole = torch.arange(15.).reshape(5, 3) + n
    w, one = (distribute_tensor(x, mesh, [Shard(0)]) for x in (whole, whole[:1].bfloat16()))  # one process has no `one`
    return dict(model=dict(w=w, one=one), history=[n], random=torch.tensor([n]))


def saved(folder):
    saver = ShardedSaver()
    first, second = folder/'checkpoint-00000-1-00000001', folder/'checkpoint-00000-1-00000002'
    saver.save(first, *taken_out(state_of(1)), background=False)
    state = state_of(2)
    saver.save(second, *taken_out(state), also=[folder/'best'])
    state['model']['w'].mul_(0)  # the copies were made
    state['random'].zero_()
    state['history'].append(0)
    saver.wait()
    wrong = folder/'checkpoint-00000-1-00000003'
    def full(*_): raise OSError(28, 'No space left on device')
    if rank(): saving_sharded.own_digests = full
    saver.save(wrong, *taken_out(state_of(3)))
    with pytest.raises(SaveError, match='No space left on device'): saver.wait()
    assert saver.done()


def test_folders_appear_whole_and_a_failure_of_one_process_is_that_of_all(tmp_path):
    run_ranks(saved, 2, tmp_path)
    first, second = (tmp_path/f'checkpoint-00000-1-0000000{i}' for i in (1, 2))
    assert {p.name for p in tmp_path.iterdir()} == {first.name, second.name, 'best'}
    for n, path in ((1, first), (2, second), (2, tmp_path/'best')):
        state = load(path)
        assert state['model']['w'].tolist() == (torch.arange(15.).reshape(5, 3) + n).tolist()
        assert (state['model']['one'].dtype, state['model']['one'].tolist()) == (torch.bfloat16, [[n, n + 1., n + 2]])
        assert (state['history'], state['random'].tolist()) == ([n], [n])
        assert verify(path) == verify(path/REST)
    info = inspect(second)
    assert info.tensors['model/w'].shape == (5, 3)
    assert info.tensors['model/one'].nbytes == 6
    assert info.size == sum(p.stat().st_size for p in second.iterdir())
    assert newest_valid(tmp_path) == second
    (second/'__0_0.distcp').write_bytes(b'')
    with pytest.warns(UserWarning, match='skipped.*the sha256 of its part __0_0.distcp'):
        assert newest_valid(tmp_path) == first
