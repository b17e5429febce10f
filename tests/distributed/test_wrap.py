"Wrapping and sharding: which blocks, which parameters an optimizer steps."
import pytest
import torch
from torch import nn

from miniai.distributed.wrap import (
    blocks_of,
    check_gradients,
    is_sharded,
    is_wrapped,
    replace_parameters,
    shard,
    sync_batchnorms,
    unwrapped,
)
from miniai.optim import AdamW


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(n, n), nn.ReLU())


def model(): return nn.Sequential(nn.Linear(4, 8), *(Block(8) for _ in range(3)), nn.Linear(8, 2))


def test_the_blocks_are_the_largest_class_that_repeats_or_what_is_given():
    m = model()
    assert blocks_of(m) == [m[1], m[2], m[3]]
    assert blocks_of(m, nn.Linear) == [m[0], m[1].inner[0], m[2].inner[0], m[3].inner[0], m[4]]
    assert blocks_of(m, [m[1], m[4]]) == [m[1], m[4]]
    assert blocks_of(m, m[1]) == [m[1]]
    assert blocks_of(nn.Linear(2, 2)) == []
    assert blocks_of(nn.Sequential(Block(2))) == []


def test_an_optimizer_without_state_steps_the_new_parameters():
    m, new = nn.Linear(2, 2), nn.Linear(2, 2)
    opt = torch.optim.SGD(m.parameters(), 0.1)
    replace_parameters(opt, dict(m.named_parameters()), dict(new.named_parameters()))
    assert opt.param_groups[0]['params'] == list(new.parameters())
    used = AdamW(m.parameters(), 0.1)
    m(torch.ones(1, 2)).sum().backward()
    used.step()
    with pytest.raises(ValueError, match="state of unsharded parameters"):
        replace_parameters(used, dict(m.named_parameters()), dict(new.named_parameters()))


def test_a_plain_model_is_neither_wrapped_nor_sharded():
    m = model()
    assert unwrapped(m) is m
    assert not is_wrapped(m)
    assert not is_sharded(m)


def test_only_known_precisions_are_taken():
    with pytest.raises(ValueError, match="mixed_precision must be 'bf16' or None, got 'fp8'"):
        shard(model(), mixed_precision='fp8')


def test_only_weights_in_their_usual_layout_are_sharded():
    with pytest.raises(ValueError, match="usual memory layout only: leave ChannelsLastCB out"):
        shard(nn.Conv2d(2, 2, 2).to(memory_format=torch.channels_last))


def test_batch_norms_are_torchs_synchronised_ones_until_that_is_undone():
    class Own(nn.BatchNorm1d): pass
    m, seen = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3)), Own(3)), []
    norm, x, names = m[1], torch.randn(5, 4), list(m.state_dict())
    m(x)
    norm.register_forward_hook(lambda *args: seen.append(args))
    expected = m.eval()(x)
    undo = sync_batchnorms(m)
    assert [type(layer) for layer in m.modules()][2:] == [nn.SyncBatchNorm, nn.Sequential, nn.SyncBatchNorm, Own]
    assert m[1] is norm
    assert m(x).equal(expected)
    undo()
    assert [type(layer) for layer in m.modules()][2:] == [nn.BatchNorm1d, nn.Sequential, nn.BatchNorm1d, Own]
    assert vars(norm).keys() == vars(nn.BatchNorm1d(3)).keys()
    assert list(m.state_dict()) == names
    assert m(x).equal(expected)
    assert len(seen) == 3


def test_a_backward_that_reached_no_weight_is_an_error():
    m = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='after backward no weight has a gradient: FSDP2 finds what the model returns'):
        check_gradients(m)
    m.bias.grad = torch.ones(2)
    check_gradients(m)
    check_gradients(nn.Linear(2, 2).requires_grad_(False))
