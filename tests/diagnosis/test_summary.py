"The model summary, compared with independent counts."
import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from miniai.datasets import DataLoaders
from miniai.diagnosis.summary import Summary, SummaryRow
from ranks import needs_distributed, run_ranks
from small import copied, equal, everything, hooks_on, learner


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


def counted(model, x):
    "Torch's count of operations, with attention as plain matrix products, which it counts on any device."
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH): model(x)
    return counter.get_total_flops()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)[:, :3]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3))

    def forward(self, x): return x @ self.w


MODELS = {
    'convolutions': (convnet, (1, 8, 8)), 'linear': (lambda: nn.Linear(4, 3), (4,)),
    'linear over positions': (lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten()), (7, 4)),
    'transposed': (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.Flatten()), (2, 5, 5)),
    'grouped, 1d': (lambda: nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.Flatten()), (4, 9)),
    'dilated, 3d': (lambda: nn.Sequential(nn.Conv3d(2, 2, 2, dilation=2), nn.Flatten()), (2, 4, 4, 4)),
    'norms': (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.LayerNorm(3)), (4,)),
    'attention': (Attention, (6, 8)), 'products outside of modules': (Functional, (4,))}


@pytest.mark.parametrize('name', MODELS)
def test_multiply_adds_are_half_of_torchs_count(name):
    build, shape = MODELS[name]
    model, x = build(), torch.randn(5, *shape)
    assert summed(model, x).mflops*1e6 == pytest.approx(counted(model, x)/2/5) != 0


def test_the_multiply_adds_of_attention_are_those_of_its_products():
    of_qkv, of_attention = 6*8*24, 2*(6*6*8)
    assert summed(Attention(), torch.randn(5, 6, 8)).mflops*1e6 == pytest.approx(of_qkv + of_attention)


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
    assert lines[0].split() == ['Module', 'Input', 'Output', 'Num', 'params', 'M', 'mult-adds']
    assert lines[-1].split() == ['Total', '1,234,567', '0.250']
    assert len({len(line) for line in lines}) == 1
    markdown = s._repr_markdown_().splitlines()
    assert markdown[0] == '|Module|Input|Output|Num params|M mult-adds|'
    assert markdown[2] == '|Linear|(5, 4)|(5, 3)|1,234,567|0.250|'
    assert markdown[3] == '|Total|||1,234,567|0.250|'


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


@needs_distributed
def test_the_summary_of_an_fsdp_model_is_that_of_the_whole_on_each_rank():
    assert run_ranks(of_convnet, 2) == [of_convnet()]*2


# Memory, and what trains

def test_memory_is_that_of_parameters_gradients_state_and_what_the_backward_needs():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].bias.requires_grad_(False)
    x = torch.randn(5, 4)
    learn = learner(model=model, dls=DataLoaders([(x, torch.zeros(5).long())], []), opt_func=optim.Adam)
    s = learn.summary()
    n, trained = 4*8 + 8 + 8*3 + 3, 4*8 + 8 + 8*3
    assert (s.params, s.trained, s.batch_size) == (n, trained, 5)
    assert s.memory == dict(parameters=4*n, gradients=4*trained, optimizer=4*(2*trained + 3),  # Adam counts steps
                            activations=4*(5*4 + 5*8))  # the input, and what ReLU gives, kept by it and the next layer
    assert str(s).splitlines()[-2:] == [
        '64 of 67 parameters train.', 'Memory of a step with 5 samples: 1.3 kB (parameters 268 bytes, gradients 256 '
        'bytes, optimizer 524 bytes, activations 240 bytes).']
    assert s._repr_markdown_().endswith(str(s).splitlines()[-1])


def test_an_optimizer_with_state_is_measured_and_one_that_needs_a_closure_is_not_known():
    learn = learner(opt_func=optim.Adam)
    learn.fit(1)
    before = learn.opt.state_dict()
    assert learn.summary().memory['optimizer'] == sum(x.nbytes for s in before['state'].values() for x in s.values())
    unknown = learner(opt_func=optim.LBFGS).summary()
    assert unknown.memory['optimizer'] is None
    assert 'and the optimizer, after its first step' in str(unknown)


def test_a_summary_leaves_the_learner_as_it_was():
    learn = learner(opt_func=optim.Adam)
    before = copied(everything(learn))
    learn.summary()
    assert equal(everything(learn), before)
    assert learn.opt is None


def test_lazy_layers_and_models_that_a_callback_moves_are_measured_as_they_then_are():
    class MoveCB:
        def before_fit(self, learn): learn.model.double()
        def before_batch(self, learn): learn.batch = (learn.batch[0].double(), learn.batch[1])
    s = learner(MoveCB(), model=nn.Sequential(nn.LazyLinear(3))).summary()
    assert (s.params, s.memory['activations']) == (15, 8*6*4)


class Slopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x): return self.b(self.a(x) + torch.func.vmap(torch.func.grad(lambda v: self.a(v).sum()))(x))


class Nested(Slopes):
    def forward(self, x):
        x = self.a(torch.nested.nested_tensor([*x[:, None]], layout=torch.jagged))
        return self.b(torch.cat(x.unbind()))


@pytest.mark.parametrize('kind', [Slopes, Nested])
def test_what_torch_cannot_measure_is_left_out_and_said(kind):
    s = learner(model=kind()).summary()
    assert [(r.input is None, r.output is None, r.params) for r in s.rows] == [(False, False, 20), (False, False, 15)]
    assert (s.memory['activations'], math.isnan(s.mflops), s.rows[0].cells()[-1]) == (None, True, '')
    assert 'and activations, which torch cannot measure' in str(s)


@pytest.mark.filterwarnings('ignore:`torch.jit:DeprecationWarning')
def test_modules_of_torchscript_have_a_row_without_shapes():
    s = learner(model=nn.Sequential(torch.jit.script(nn.Linear(4, 8)), nn.Linear(8, 3))).summary()
    assert [(r.input is None, r.params) for r in s.rows] == [(True, 40), (False, 27)]
    assert learner(model=torch.jit.script(nn.Sequential(nn.Linear(4, 3)))).summary().params == 15
