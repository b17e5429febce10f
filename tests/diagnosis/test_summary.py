"The model summary, compared with independent counts."
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from miniai.datasets import DataLoaders
from miniai.diagnosis.summary import Summary, SummaryRow
from ranks import run_ranks
from small import hooks_on, learner


def convnet():
    block = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(block, nn.Conv2d(8, 16, 3, bias=False), nn.Flatten(), nn.Linear(16*2*2, 3))


def summed(model, x=None, loss=lambda p, y: p.mean()):
    b = (torch.randn(5, 1, 8, 8) if x is None else x, torch.zeros(5, dtype=torch.long))
    return learner(model=model, dls=DataLoaders([b], [b]), loss_func=loss).summary()


def test_each_child_has_a_row_with_shapes_and_parameters():
    s = summed(convnet())
    assert [(r.module, r.input, r.output, r.params) for r in s.rows] == [
        ('Sequential', (5, 1, 8, 8), (5, 8, 4, 4), 8*9 + 8), ('Conv2d', (5, 8, 4, 4), (5, 16, 2, 2), 8*16*9),
        ('Flatten', (5, 16, 2, 2), (5, 64), 0), ('Linear', (5, 64), (5, 3), 64*3 + 3)]


def test_totals_are_those_of_the_model():
    model = convnet()
    s = summed(model)
    assert s.params == sum(p.numel() for p in model.parameters())
    assert s.mflops == pytest.approx(sum(r.mflops for r in s.rows))


def test_multiply_adds_equal_torchs_count_plus_the_biases():
    model = convnet()
    with FlopCounterMode(display=False) as counter: model(torch.randn(1, 1, 8, 8))
    biases = 8 + 3
    assert summed(model).mflops*1e6 == pytest.approx(counter.get_total_flops()/2 + biases)


def test_a_module_used_twice_counts_twice_in_multiply_adds_and_once_in_parameters():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = self.a

        def forward(self, x): return self.b(self.a(x))
    s = summed(Twice(), torch.randn(5, 4))
    assert (s.params, s.mflops*1e6) == (16, pytest.approx(32))


def test_a_model_without_children_is_one_row():
    s = summed(nn.Linear(4, 3), torch.randn(5, 4))
    assert [(r.module, r.params) for r in s.rows] == [('Linear', 15)]


def test_a_child_that_never_ran_has_no_shapes():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.idle = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x): return self.a(x)
    s = summed(Idle(), torch.randn(5, 4))
    assert (s.rows[1].input, s.rows[1].output, s.rows[1].mflops) == (None, None, 0)
    assert 'None' not in str(s)


def test_an_output_without_a_tensor_has_no_shape():
    class Odd(nn.Module):
        def forward(self, x): return 'text'

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.lin = Odd(), nn.Linear(4, 3)

        def forward(self, x):
            self.odd(x)
            return self.lin(x)
    assert summed(Uses(), torch.randn(5, 4)).rows[0].output is None


def test_the_table_prints_in_aligned_columns_and_as_markdown():
    s = Summary([SummaryRow('Linear', (5, 4), (5, 3), 1234567, .25)], 1234567, .25)
    lines = str(s).splitlines()
    assert repr(s) == str(s)
    assert lines[0].split() == ['Module', 'Input', 'Output', 'Num', 'params', 'MFLOPS']
    assert lines[-1].split() == ['Total', '1,234,567', '0.2']
    assert len({len(line) for line in lines}) == 1
    markdown = s._repr_markdown_().splitlines()
    assert markdown[0] == '|Module|Input|Output|Num params|MFLOPS|'
    assert markdown[2] == '|Linear|(5, 4)|(5, 3)|1,234,567|0.2|'
    assert markdown[3] == '|Total|||1,234,567|0.2|'


@pytest.mark.parametrize('fails', [False, True])
def test_all_hooks_are_removed_even_if_the_model_fails(fails):
    model = convnet()
    if fails:
        with pytest.raises(RuntimeError, match='to have 1 channels'): summed(model, torch.randn(5, 2, 8, 8))
    else: summed(model)
    assert hooks_on(model) == 0


def test_it_says_what_is_frozen():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3), nn.ReLU())
    for p in (*model[0].parameters(), *model[1][0].parameters()): p.requires_grad_(False)
    assert [r.module for r in learner(model=model).summary().rows] == [
        'Linear (frozen)', 'Sequential (partly frozen)', 'Linear', 'ReLU']


def of_convnet():
    "The summary of a model, twice; in a group of two FSDP2 shards it, and each process gets half of the batch."
    model, n = convnet(), 2
    if dist.is_initialized():
        from torch.distributed.fsdp import fully_shard
        for m in (model[0], model[3], model): fully_shard(m)
        n *= 2
    b = torch.randn(n, 1, 8, 8), torch.zeros(n, dtype=torch.long)
    learn = learner(model=model, dls=DataLoaders([b], [b]), loss_func=lambda p, y: p.mean())
    return [(s.params, s.mflops, [(r.module.removeprefix('FSDP'), r.input, r.output, r.params, r.mflops)
                                  for r in s.rows]) for s in (learn.summary(), learn.summary())]


@pytest.mark.skipif(not dist.is_available(), reason='this build of torch has no torch.distributed')
def test_the_summary_of_an_fsdp_model_is_that_of_the_whole_on_each_rank():
    assert run_ranks(of_convnet, 2) == [of_convnet()]*2
