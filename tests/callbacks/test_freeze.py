"Frozen parts: against a plain torch loop, thawed on time, the same after a resume."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import Adam, AdamW, Callback, CheckpointCB, FreezeCB, TrainLearner
from miniai.learner import MomentumLearner
from miniai.optim import no_decay_groups
from ranks import needs_distributed, run_ranks
from resuming import Quiet, StopCB, Stopped, assert_resumes_exactly
from small import learner, loaders, same, weights


def net(dropout=0.):
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout))
    return nn.Sequential(body, nn.Linear(8, 3))


OPT = partial(torch.optim.SGD, momentum=.9, weight_decay=.01)


def by_hand(n_epochs, until, lr=.1):
    "A plain loop with a frozen body until epoch `until`."
    model, dls = net(), loaders()
    opt = OPT(model.parameters(), lr)
    for epoch in range(n_epochs):
        model.train()
        model[0].requires_grad_(epoch >= until).train(epoch >= until)
        for x, y in dls.train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    return dict(model.state_dict())


def assert_close(learn, want):
    for nm, x in learn.model.state_dict().items(): torch.testing.assert_close(x, want[nm], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('until', [1, 2])
@pytest.mark.parametrize('body', ['0', ['0'], lambda m: m[0], lambda m: [m[0][0], '0.1', m[0][3]], lambda m: m[:1]])
def test_training_equals_a_plain_loop_with_a_frozen_body(until, body):
    model = net()
    learn = learner([FreezeCB(body(model) if callable(body) else body, until)], model=model, opt_func=OPT)
    learn.fit(4)
    assert_close(learn, by_hand(4, until))
    assert all(p.requires_grad for p in model.parameters())


def test_no_weight_and_no_statistic_of_the_body_moves_while_it_is_frozen():
    seen = []
    class Note(Callback):
        order = 9
        def after_epoch(self, learn): seen.append(weights(learn))
        def before_batch(self, learn): modes.append((learn.model[0][1].training, learn.model.training))
    modes = []
    learn = learner([FreezeCB('0', 1), Note()], model=net(.3), opt_func=partial(AdamW, wd=.1))
    start = weights(learn)
    learn.fit(2)
    body = [nm for nm in start if nm.startswith('0.')]
    for nm in body: assert torch.equal(seen[1][nm], start[nm])
    for nm in body: assert not torch.equal(seen[2][nm], start[nm])
    assert modes[:6] == [(False, True)]*4 + [(False, False)]*2
    assert modes[6:10] == [(True, True)]*4


@pytest.mark.parametrize('opt_func', [AdamW, lambda params, lr: Adam(no_decay_groups(params, .1), lr)])
def test_a_resumed_run_is_exact_before_and_after_thawing(opt_func, tmp_path):
    def make(folder, *cbs):
        given = [Quiet(), FreezeCB('0', 1), CheckpointCB(folder, batches=1, keep=99), *cbs]
        return learner(given, model=net(.3), opt_func=opt_func)
    assert_resumes_exactly(make, tmp_path, stops=((0, 2), (1, 1), (2, 0)), n_epochs=3)


def test_a_fit_that_stops_while_frozen_thaws_so_that_the_next_one_trains_all():
    learn = learner([FreezeCB('0', 1)], model=net(), opt_func=lambda params, lr: AdamW(no_decay_groups(params, .1), lr))
    with pytest.raises(Stopped): learn.fit(2, cbs=StopCB(0, 1))
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.cbs, before = [], weights(learn)
    learn.fit(1)
    assert not any(torch.equal(x, before[nm]) for nm, x in weights(learn).items())


def test_a_second_fit_freezes_and_thaws_again():
    learn = learner([FreezeCB('0', 1)], model=net())
    learn.fit(2)
    class Note(Callback):
        def before_batch(self, learn): modes.append((learn.epoch, learn.training, learn.model[0][1].training))
    modes = []
    learn.fit(2, cbs=Note())
    assert set(modes) == {(0, True, False), (0, False, False), (1, True, True), (1, False, False)}


def test_what_did_not_train_before_stays_frozen_after_thawing():
    model = net()
    model[0][0].weight.requires_grad_(False)
    model[0][1].eval()
    learn = learner([FreezeCB('0', 1)], model=model)
    before = weights(learn)
    learn.fit(3)
    moved = {nm for nm, x in weights(learn).items() if not torch.equal(x, before[nm])}
    assert moved == {'0.0.bias', '0.1.weight', '0.1.bias', '1.weight', '1.bias'}
    assert [nm for nm, p in model.named_parameters() if not p.requires_grad] == ['0.0.weight']


def test_a_search_for_a_rate_leaves_the_body_alone_and_thaws_it():
    learn = learner([FreezeCB('0', 1)], model=net())
    before, moved = weights(learn), []
    class Note(Callback):
        def after_step(self, learn): moved.append(not torch.equal(learn.model[0][0].weight, before['0.0.weight']))
    learn.cbs.append(Note())
    learn.lr_find(max_epochs=3)
    assert set(moved) == {False}
    assert all(p.requires_grad for p in learn.model.parameters())
    assert same(before, weights(learn))


def test_learn_freeze_holds_over_fits_until_unfreeze():
    learn = learner(model=net(), opt_func=AdamW)
    before = weights(learn)
    learn.freeze('0')
    for _ in range(2): learn.fit(1)
    assert all(torch.equal(x, before[nm]) for nm, x in weights(learn).items() if nm.startswith('0.'))
    learn.unfreeze()
    learn.fit(1)
    assert not any(torch.equal(x, before[nm]) for nm, x in weights(learn).items())


def test_a_part_of_what_was_frozen_can_be_unfrozen():
    learn = learner(model=net())
    before = weights(learn)
    learn.freeze(['0', learn.model[1]])
    learn.unfreeze('1')
    learn.unfreeze(learn.model[0][1])
    learn.fit(1)
    assert {nm for nm, x in weights(learn).items() if torch.equal(x, before[nm])} == {'0.0.weight', '0.0.bias'}


def test_other_parts_that_stood_in_eval_mode_stay_there():
    model = net().eval()
    model[1].train()  # a new head on a pretrained body
    learn = learner(model=model)
    learn.freeze(model[0][0])
    before = weights(learn)
    with pytest.warns(UserWarning, match='keeps its statistics'): learn.fit(1)
    assert torch.equal(model[0][1].running_mean, before['0.1.running_mean'])


def test_a_frozen_parameter_has_no_gradient_left_to_step():
    learn = learner(model=net(), cls=MomentumLearner)
    learn.fit(1)
    assert learn.model[0][0].weight.grad is not None
    learn.freeze('0')
    before = weights(learn)
    learn.fit(1)
    assert torch.equal(learn.model[0][0].weight, before['0.0.weight'])


def test_a_name_of_nothing_and_a_body_that_never_thaws_are_errors_that_change_nothing():
    learn = learner(model=net())
    for wrong, said in (('2', "no part '2'"), (nn.Linear(4, 8), 'no part a Linear'), (['0', 'x'], "no part 'x'"),
                        (nn.Sequential(nn.ReLU()), 'no part a Sequential'), (3, 'no part a int')):
        with pytest.raises(ValueError, match=f"the model has {said}: give a module of it, .*Its parts are '0', '1'"):
            learn.freeze(wrong)
    assert all(p.requires_grad for p in learn.model.parameters())
    with pytest.raises(ValueError, match=r'would never thaw, with until_epoch=2 in a fit of 2 epochs: use learn'):
        learn.fit(2, cbs=FreezeCB('0', 2))
    learn.fit(1, train=False, cbs=FreezeCB('0', 2))
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_body_stays_in_eval_mode_in_a_learner_that_keeps_none():
    class Plain(TrainLearner):
        def one_epoch(self, training):
            self.model.train(training)
            self.dl = self.dls.train if training else self.dls.valid
            self._one_epoch()
    learn = learner([FreezeCB('0', 1)], cls=Plain, model=net(), opt_func=OPT)
    learn.fit(3)
    assert_close(learn, by_hand(3, 1))


def test_if_all_is_frozen_the_fit_says_so():
    learn = learner(model=net())
    learn.freeze(learn.model)
    with pytest.raises(ValueError, match='nothing to train'): learn.fit(1)


def frozen_by_fsdp():
    "Which weights change in a fit, frozen and thawed after forward passes that leave the root's parameters gathered."
    from torch.distributed.fsdp import fully_shard
    learn, moved = learner(model=fully_shard(net())), []
    for change in (lambda: learn.freeze('0'), learn.unfreeze):
        with torch.no_grad(): learn.model(torch.ones(2, 4))
        change()
        before = {nm: x.full_tensor() for nm, x in learn.model.state_dict().items() if hasattr(x, 'full_tensor')}
        learn.fit(1, valid=False)
        after = learn.model.state_dict()
        moved.append({nm: not torch.equal(after[nm].full_tensor(), x) for nm, x in before.items()})
    return moved


@needs_distributed
def test_parts_of_an_fsdp_model_freeze_and_thaw_after_a_forward_pass():
    for frozen, thawed in run_ranks(frozen_by_fsdp, 2):
        assert {nm for nm, moved in frozen.items() if moved} == {'1.weight', '1.bias'}
        assert {nm for nm, moved in thawed.items() if moved} >= {'0.0.weight', '0.1.weight', '1.weight', '1.bias'}


@pytest.mark.parametrize('until_epoch', [0, 1.5, '2', None])
def test_the_epoch_of_thawing_is_a_whole_number(until_epoch):
    with pytest.raises(ValueError, match=f'until_epoch must be a whole number, 1 or more, got {until_epoch!r}'):
        FreezeCB('0', until_epoch)
