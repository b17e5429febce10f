"Wrapping and sharding: which blocks, which parameters an optimizer steps."
import pytest
import torch
from torch import nn

from miniai.distributed.wrap import blocks_of, is_sharded, is_wrapped, replace_parameters, shard, unwrapped
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
