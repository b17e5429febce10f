"Rules for matrices: which parameters they step, in which shape, and who steps the others."
import copy

import pytest
import torch
from torch import nn

from miniai.optim import (
    LAMB,
    SGD,
    SOAP,
    Adam,
    AdamW,
    Kron,
    Muon,
    Shampoo,
    groups_table,
    matmul,
    matrix,
    matrix_groups,
    no_decay_groups,
    optimizer,
    rules,
    starts,
    transpose,
)
from miniai.optim.matrices import outer_parameters
from opts import same
from small import learner


class Language(nn.Module):
    "Embeddings of words and of places, a block with a norm, and a head, which may share the weight of the words."
    def __init__(self, tied):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6), nn.Parameter(torch.randn(1, 4, 6))
        self.attention, self.norm, self.mlp = nn.MultiheadAttention(6, 2), nn.LayerNorm(6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied: self.head.weight = self.words.weight


def names(model, groups):
    of = {p: nm for nm, p in model.named_parameters()}
    return [{of[p] for p in g['params']} for g in groups]


@pytest.mark.parametrize('tied', [False, True])
def test_hidden_matrices_are_those_between_embeddings_and_the_last_layer(tied):
    model = Language(tied)
    hidden, others = names(model, matrix_groups(model, Muon))
    assert hidden == {'attention.in_proj_weight', 'attention.out_proj.weight', 'mlp.weight'}
    assert {'words.weight', 'places', 'norm.weight', 'norm.bias', 'mlp.bias'} <= others
    assert hidden | others == {nm for nm, _ in model.named_parameters()}


def test_of_a_convnet_all_weights_but_the_last_are_hidden_whatever_layer_is_last():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1))
    assert names(model, matrix_groups(model, Muon))[0] == {'0.weight', '2.weight'}


def test_without_a_model_all_with_two_or_more_dimensions_are_hidden():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.BatchNorm1d(3))
    for params in (model.parameters(), list(model.named_parameters()), [dict(params=list(model.parameters()))]):
        opt = Muon(params)
        assert names(model, opt.param_groups) == [{'0.weight', '1.weight'}, {'1.bias', '2.weight', '2.bias'}]


@pytest.mark.parametrize('cls', [Muon, SOAP, Shampoo, Kron])
def test_empty_matrices_are_the_companions(cls):
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model.empty = nn.Parameter(torch.zeros(0, 3))
    opt = cls(model)
    assert names(model, opt.param_groups) == [{'0.weight'}, {'1.weight', 'empty'}]
    for p in model.parameters(): p.grad = torch.ones_like(p)
    opt.step()


def test_lazy_layers_are_an_error_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r'Muon needs .* lazy layer .* run a batch through the model first'):
        Muon(model)
    model(torch.ones(1, 3))
    assert names(model, Muon(model).param_groups)[0] == {'0.weight'}


def test_the_others_have_the_companions_hyperparameters_and_the_rate_and_decay_of_the_matrices():
    opt = Muon(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), lr=.3, wd=.2, mom=.8)
    hidden, others = opt.param_groups
    assert (hidden['lr'], hidden['weight_decay'], hidden['momentum'], opt.rule_of(hidden)) == (.3, .2, .8, Muon)
    assert (others['lr'], others['weight_decay'], others['betas'], opt.rule_of(others)) == (.3, .2, (.9, .999), AdamW)
    rows = [row.split()[:4] for row in groups_table(opt).splitlines()]
    assert rows == [['group', 'tensors', 'elements', 'rule'], ['matrices', '1', '16', 'Muon'],
                    ['others', '3', '14', 'AdamW']]


def test_groups_may_be_changed_and_composed_with_those_of_decay():
    model = Language(tied=False)
    hidden, others = matrix_groups(model, Muon, others=Adam)
    opt = Muon([hidden, others | dict(lr=.5)], lr=.1)
    assert [(opt.rule_of(g), g['lr']) for g in opt.param_groups] == [(Muon, .1), (Adam, .5)]
    split = Muon(no_decay_groups(matrix_groups(model, Muon), .1)).param_groups
    assert [(g['name'], g['weight_decay']) for g in split] == [
        ('matrices, decay', .1), ('others, decay', .1), ('others, no decay', 0.)]


def test_a_parameter_without_rows_and_columns_in_a_matrix_rules_group_is_an_error():
    with pytest.raises(TypeError, match=r'Muon steps matrices and convolutions, .* shape \(3,\): use Muon\(mod'):
        AdamW([dict(params=[nn.Parameter(torch.zeros(3))], rule=Muon)])


def test_a_learner_tells_the_optimizer_which_layer_is_the_last():
    learn = learner(opt_func=Muon, lr=.01)
    learn.fit(1)
    assert names(learn.model, learn.opt.param_groups) == [{'0.weight'}, {'0.bias', '2.weight', '2.bias'}]


@matrix(others=rules.sgd)
@starts(rows=lambda p, g: torch.zeros(p.shape[0], p.shape[0], dtype=p.dtype, device=p.device))
def rotated(p, g, rows, *, lr):
    "A rule with a state of another shape than the parameter."
    rows = rows + matmul(g, transpose(g))
    return p - lr*matmul(rows, g), rows


def test_a_convolution_is_a_matrix_with_a_row_for_each_output_channel_in_any_memory_format():
    torch.manual_seed(0)
    conv, flat = nn.Parameter(torch.randn(4, 2, 3, 3)), None
    conv.data = conv.data.to(memory_format=torch.channels_last)
    conv.grad = torch.randn_like(conv)
    flat = nn.Parameter(conv.detach().reshape(4, 18).clone())
    flat.grad = conv.grad.reshape(4, 18).clone()
    Opt = optimizer(rotated)
    a, b = Opt([conv], lr=.01), Opt([flat], lr=.01)
    for _ in range(3): a.step(), b.step()
    assert torch.equal(conv.reshape(4, 18), flat)
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(a.state[conv]['rows'], b.state[flat]['rows'])


def test_a_state_may_have_a_shape_of_its_own_and_is_saved_and_checked_with_it():
    def made():
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))
        p.grad = torch.randn_like(p)
        return p, optimizer(rotated)([p], lr=.01)
    p, opt = made()
    want, rows, q, g = p.detach().clone(), torch.zeros(3, 3, dtype=torch.float64), None, p.grad
    for _ in range(4):
        opt.step()
        rows = rows + g @ g.T
        want = want - .01*rows @ g
    assert torch.allclose(p, want, rtol=1e-12)
    assert torch.allclose(opt.state[p]['rows'], rows, rtol=1e-12)
    saved = copy.deepcopy(opt.state_dict())
    q, other = made()
    q.data.copy_(p.data)
    other.load_state_dict(saved)
    opt.step(), other.step()
    assert torch.equal(p, q)
    assert same(opt.state_dict()['state'], other.state_dict()['state'])
    saved['state'][0]['rows'] = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"'rows' of parameter 0 .* has shape \(3, 5\), here it has \(3, 3\)"):
        other.load_state_dict(saved)


def test_a_user_rule_with_a_companion_of_the_users_steps_both():
    def halved(p, g, *, lr): return p - lr*g/2
    Opt = optimizer(matrix(others=halved)(lambda p, g, *, lr: p - lr*matmul(g, matmul(transpose(g), g))), 'Cubed')
    a, b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    a.grad, b.grad = torch.tensor([[1., 2.], [0., 1.]]), torch.ones(2)
    Opt([a, b], lr=1.).step()
    assert torch.equal(a.detach(), -(a.grad @ a.grad.T @ a.grad))
    assert torch.equal(b.detach(), torch.full((2,), -.5))


def test_any_optimizer_takes_a_model_for_its_parameters():
    model = nn.Linear(2, 2)
    assert [p for g in SGD(model, lr=.1).param_groups for p in g['params']] == list(model.parameters())


def test_outer_parameters_know_bare_parameters_and_embeddings():
    model = Language(tied=False)
    of = {p: nm for nm, p in model.named_parameters()}
    assert {of[p] for p in outer_parameters(model) if p.ndim > 1} == {'words.weight', 'places', 'head.weight'}


def in_double(monkeypatch): monkeypatch.setattr(torch.Tensor, 'bfloat16', lambda x: x)


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(('adjust', 'theirs'), [('spectral', 'original'), ('spectral', None),
                                                ('match_rms_adamw', 'match_rms_adamw')])
def test_muon_is_torchs_over_100_steps_at_a_moving_rate(monkeypatch, dtype, limit, adjust, theirs):
    in_double(monkeypatch)  # both round to bfloat16, where the order of two additions decides: compare without
    ps = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((7, 5), (5, 9), (4, 4), (1, 6))]
    qs = copy.deepcopy(ps)
    ours, torchs = Muon(ps, adjust=adjust), torch.optim.Muon(qs, adjust_lr_fn=theirs)
    for t in range(100):
        for p, q in zip(ps, qs, strict=True): p.grad = q.grad = torch.randn_like(p) if t % 9 else None
        for g in (*ours.param_groups, *torchs.param_groups): g['lr'] = .003*(1 + t % 7)
        ours.step(), torchs.step()
        if t == 50:
            ours.load_state_dict(copy.deepcopy(torchs.state_dict()))
            torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(ps, qs, strict=True): assert torch.allclose(p, q, rtol=0, atol=limit)


def test_muon_refuses_what_torchs_computes_otherwise():
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match='nesterov=False'):
        Muon([p]).load_state_dict(torch.optim.Muon([p], nesterov=False).state_dict())
    for words, message in ((dict(adjust='none'), "adjust must be 'match_rms_adamw' or 'spectral', got 'none'"),
                           (dict(coefficients='cubic'), "coefficients must be one of quintic, newton, got 'cubic'")):
        with pytest.raises(ValueError, match=message): Muon([p], **words)


def test_lambs_step_is_as_long_as_the_parameter_times_the_rate_whatever_the_gradient():
    ps = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((3, 4), (5,))] + [nn.Parameter(torch.zeros(3))]
    opt = LAMB(ps, lr=.1)
    for scale in (1e3, 1., 1e-3):
        for p in ps: p.grad = torch.randn_like(p)*scale
        before = [p.detach().clone() for p in ps]
        opt.step()
        for p, old in list(zip(ps, before, strict=True))[:2]:
            assert float((p.detach() - old).norm()) == pytest.approx(.1*float(old.norm()), rel=1e-9)
    assert ps[2].abs().min() > 0  # zeros have no length to keep: Adam's own step


def test_lamb_on_a_float_is_lamb_on_a_tensor_of_one():
    x, s, p = 2., (0., 0.), nn.Parameter(torch.tensor(2., dtype=torch.float64))
    opt = LAMB([p], lr=.1)
    for t, g in enumerate((.3, -2., 0.)):
        p.grad = torch.tensor(g, dtype=torch.float64)
        opt.step()
        x, *s = rules.lamb(x, g, *s, t=t + 1, lr=.1)
        assert p.item() == pytest.approx(x, rel=1e-12)
