"Stochastic rounding: unbiased, and the same bits on every path."
import math

import pytest
import torch
from torch import nn

from miniai.kernels.rounding import dithered
from miniai.optim import SGD, AdamW
from opts import force_batched, force_eager, same


def test_stochastic_rounding_of_parameters_is_unbiased(path):
    n, x = 40_000, 1 + 2**-7*.3
    p = nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
    p.grad = torch.full_like(p, -1.)
    SGD([p], lr=2**-7*.3, rounding='stochastic', seed=1).step()
    assert set(p.tolist()) == {1., 1 + 2**-7}
    assert abs(p.float().mean().item() - x) < 5*2**-7*math.sqrt(.3*.7/n)


def test_rounding_to_nearest_loses_what_stochastic_rounding_keeps():
    ends = {}
    for rounding in ('nearest', 'stochastic'):
        p = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        opt = SGD([p], lr=2**-12, rounding=rounding)
        for _ in range(256):
            p.grad = torch.full_like(p, -1.)
            opt.step()
        ends[rounding] = p.float().mean().item()
    assert ends['nearest'] == 1.
    assert ends['stochastic'] == pytest.approx(1 + 256*2**-12, abs=2e-3)


@pytest.mark.parametrize('options', [dict(rounding='stochastic'), dict(state='bf16', rounding='stochastic')])
def test_all_paths_round_by_the_same_dice_in_every_layout(options, monkeypatch):
    def stepped(name):
        x = torch.randn(20, 6, 5, 7, generator=torch.Generator().manual_seed(5)).bfloat16()
        ps = [nn.Parameter(x.clone().to(memory_format=torch.channels_last)), nn.Parameter(x.clone()[0, 0])]
        opt, g = AdamW(ps, lr=.1, seed=3, **options), torch.Generator().manual_seed(1)
        for p in ps: p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=g))
        opt.step()
        assert opt.path.startswith(name)
        return [*ps, *(x for p in ps for x in opt.state[p].values() if torch.is_tensor(x))]
    fused = stepped('fused')
    force_batched(monkeypatch)
    batched = stepped('batched')
    force_eager(monkeypatch)
    eager = stepped('eager')
    assert same(batched, eager)
    for a, b in zip(fused, eager, strict=True):  # contraction changes the last of 16 random bits now and then
        assert (a != b).double().mean() < 2e-3
        assert (a.float() - b.float()).abs().max() <= .01*b.float().abs().max()


def test_seeds_steps_and_places_draw_different_dice():
    p = torch.full((1000,), 1.001)
    draws = [dithered(p, k) for k in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(dithered(torch.tensor([math.nan, math.inf, -math.inf, 0., -0.]), 7).isnan(),
                       torch.tensor([True, False, False, False, False]))
