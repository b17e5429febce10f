"The pass by torch: the same operations whatever the number of tensors, in batches of bounded size."
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from miniai.kernels import batched
from miniai.kernels.batched import BatchedPass
from miniai.optim import AdamW, Lion, optimizer
from opts import everything, force_batched, params, run, same
from passes import CHECKS

VIEWS = {'detach', 'view', 'as_strided', 'slice', 'split_with_sizes', 'expand', 'unbind', '_unsafe_view'}


class Launches(TorchDispatchMode):
    "Counts operations that are no views."
    number = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **kwargs or {})


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('check', CHECKS)
def test_what_every_pass_must_do(check, dtype): check(BatchedPass, dtype)


@pytest.mark.parametrize('cls', [AdamW, Lion])
def test_a_step_takes_the_same_few_operations_for_any_number_of_tensors(cls, monkeypatch):
    force_batched(monkeypatch)
    found = []
    for n in (2, 200):
        ps = params(*[(3, i % 7 + 1) for i in range(n)])
        opt = run(cls(ps, lr=.1, clip_norm=1.), ps, 2)
        with Launches() as count: opt.step()
        found.append(count.number)
    assert found[0] == found[1] < 40


def test_the_size_of_batches_changes_no_bit(monkeypatch):
    force_batched(monkeypatch)
    ends = []
    for most in (1 << 17, 1000, 7):
        monkeypatch.setattr(batched, 'ON_CPU', most)
        ps = params((100, 30), (5,), (), (0,), (64, 3))
        groups = [dict(params=ps[:2]), dict(params=ps[2:], lr=.3)]
        opt = run(AdamW(groups, lr=.1, cautious='rescaled', state='bf16'), ps, 3)
        ends.append(everything(opt, ps))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


@pytest.mark.parametrize('shapes', [[(3,)], [(3,), (4, 2)]])
def test_a_rule_that_swaps_its_states_or_returns_a_number_is_stepped_right(shapes, monkeypatch):
    force_batched(monkeypatch)
    def rule(p, g, a, b, c, *, lr): return p - lr*g, b, a, lr
    ps = params(*shapes)
    opt = run(optimizer(rule)(ps, lr=.5), ps, 1)
    opt.state[ps[0]]['a'].fill_(1.)
    opt.state[ps[0]]['b'].fill_(2.)
    run(opt, ps, 1)
    assert [opt.state[ps[0]][s].tolist() for s in 'abc'] == [[2.]*3, [1.]*3, [.5]*3]
