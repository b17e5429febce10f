"The five phases as a callback, the device, and one batch alone."
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import AccumulateCB, CheckpointCB, MixedPrecision, accuracy
from miniai.datasets import DataLoaders
from miniai.learner import CancelFitException, DeviceCB, Learner, MetricsCB, SingleBatchCB, TrainCB
from resuming import assert_resumes_exactly
from small import Heard, TwoInputs, batches, learner, raising, same, two_inputs, weights


def test_train_cb_trains_as_train_learner_does():
    a, b = learner(TrainCB(), cls=Learner), learner()
    a.fit(2)
    b.fit(2)
    assert same(weights(a), weights(b))


def test_the_first_n_inp_of_a_batch_are_inputs_and_the_rest_go_to_the_loss():
    seen = []
    def loss(preds, *targets):
        seen.append(len(targets))
        return F.cross_entropy(preds, targets[-1])
    learner(TrainCB(n_inp=2), cls=Learner, model=TwoInputs(), dls=two_inputs(), loss_func=loss).fit(1)
    learner(TrainCB(), cls=Learner, dls=two_inputs(), loss_func=loss).fit(1)
    assert seen == [1]*4 + [2]*4


def test_metrics_compare_with_the_first_target_after_the_inputs():
    metrics = MetricsCB(acc=lambda p, y: (p.argmax(1) == y).float().mean())
    learn = learner([metrics, TrainCB(n_inp=2)], cls=Learner, model=TwoInputs(), dls=two_inputs())
    learn.fit(1)
    x, x2, y = learn.dls.valid[0]
    assert learn.history[-1]['acc'] == pytest.approx((learn.model(x, x2).argmax(1) == y).float().mean().item())


def test_a_subclass_may_replace_a_single_phase():
    class Scaled(TrainCB):
        def get_loss(self, learn): learn.loss = learn.loss_func(learn.preds, learn.batch[1])*0
    learn = learner(Scaled(), cls=Learner)
    before = weights(learn)
    learn.fit(1)
    assert same(before, weights(learn))


def test_a_batch_may_be_a_list(): learner(dls=DataLoaders([[*b] for b in batches()], [])).fit(1, valid=False)


def test_metrics_that_were_used_by_another_learner_take_the_number_of_inputs_of_this_one():
    metrics = MetricsCB(acc=lambda p, y: (p.argmax(1) == y).float().mean())
    learner([metrics, TrainCB(n_inp=2)], cls=Learner, model=TwoInputs(), dls=two_inputs()).fit(1)
    learner([metrics, TrainCB()], cls=Learner).fit(1)


def test_single_batch_stops_the_fit_after_one_batch_and_others_of_lower_order_hear_its_end():
    cb = Heard()
    learner([SingleBatchCB(), cb]).fit(3)
    assert SingleBatchCB.order == 1
    assert cb.log.count('before_batch') == cb.log.count('after_batch') == cb.log.count('cleanup_fit') == 1
    assert 'after_fit' not in cb.log


def test_device_moves_model_and_batches():
    seen = []
    class Look:
        order = DeviceCB.order + 1
        def before_batch(self, learn):
            seen.extend(t.device.type for t in (*learn.model.parameters(), *learn.batch))
            raise CancelFitException
    learner([DeviceCB('meta'), Look()]).fit(1)
    assert seen == ['meta']*6


def test_a_model_without_to_is_left_where_it_is():
    class Duck:
        training = True
        def state_dict(self): return {}
        def modules(self): return []
        def parameters(self): return [torch.zeros(1, requires_grad=True)]
        def train(self, mode): self.training = mode
        def __call__(self, x): return x[:, :3].requires_grad_()
    learner(DeviceCB('cpu'), model=Duck()).fit(1)


def test_the_default_device_is_the_best_there_is():
    best = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    assert torch.device(DeviceCB().device).type == best


def test_an_error_in_a_phase_of_a_callback_names_it():
    class Broken(TrainCB):
        def predict(self, learn): raising(ZeroDivisionError('oh'))()
    with pytest.raises(ZeroDivisionError) as e: learner(Broken(), cls=Learner).fit(1)
    assert any('Broken' in n and 'predict' in n for n in e.value.__notes__)


# Batches that are dicts or objects

@dataclass
class Sentences:
    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None = None


class Bag:
    "As a graph of PyTorch Geometric: attributes, neither a mapping nor a sequence, moved by its own `to`."
    def __init__(self, **items): vars(self).update(items)
    def to(self, device): return Bag(**{k: v.to(device) for k, v in vars(self).items()})


class Encoding(UserDict):
    "As a BatchEncoding."
    def to(self, device): return Encoding({k: v.to(device) for k, v in self.items()})


class MaskedMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids, mask): return self.out((self.emb(ids)*mask[..., None]).sum(1)/mask.sum(1, keepdim=True))


def padded(n=4, bs=5, seed=1, grow=1):
    g = torch.Generator().manual_seed(seed)
    for i in range(n):
        ids = torch.randint(1, 20, (bs + i, 3 + i*grow), generator=g)  # sizes and lengths differ
        mask = (torch.rand(ids.shape, generator=g) > .3).float()
        mask[:, 0] = 1
        yield dict(ids=ids, mask=mask, labels=torch.randint(0, 3, (bs + i,), generator=g))


KINDS = dict(dict=dict, encoding=Encoding, dataclass=lambda d: Sentences(**d), object=lambda d: Bag(**d))
NAMED = dict(names=(('ids', 'mask'), 'labels'),
             functions=((lambda b: b['ids'], lambda b: b['mask']), lambda b: b['labels']),
             both=((lambda b: b['ids'], 'mask'), ('labels',)))


def masked(kind='dict', inputs=('ids', 'mask'), targets='labels', cbs=(), **kwargs):
    make = KINDS[kind]
    dls = DataLoaders([make(b) for b in padded()], [make(b) for b in padded(2, seed=7)])
    train = TrainCB(inputs=inputs, targets=targets)
    return learner([train, *cbs], cls=Learner, model=masked_model(), dls=dls, **kwargs)


def masked_model():
    torch.manual_seed(4)
    return MaskedMean()


def plainly_trained(epochs=2, lr=.1, group=1):
    "Plain PyTorch in double precision: the model, and the training loss per sample of the last epoch."
    model = masked_model().double()
    opt = torch.optim.SGD(model.parameters(), lr)
    for _ in range(epochs):
        bs, losses = list(padded()), []
        for i in range(0, len(bs), group):
            outs = [(model(b['ids'], b['mask'].double()), b['labels']) for b in bs[i:i + group]]
            loss = F.cross_entropy(torch.cat([o for o, _ in outs]), torch.cat([y for _, y in outs]), reduction='sum')
            losses.append(loss.item())
            opt.zero_grad()
            (loss/sum(len(y) for _, y in outs)).backward()
            opt.step()
    return model, sum(losses)/sum(len(b['labels']) for b in bs)


def assert_same_weights(model, expected):
    for nm, p in model.state_dict().items():
        torch.testing.assert_close(p.double(), expected.state_dict()[nm], atol=1e-6, rtol=1e-4, msg=nm)


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_that_is_a_dict_or_an_object_trains_as_plain_pytorch(kind):
    learn = masked(kind, cbs=[DeviceCB('cpu'), MetricsCB(acc=accuracy)])
    learn.fit(2)
    expected, loss = plainly_trained()
    assert_same_weights(learn.model, expected)
    assert learn.history[-2]['loss'] == pytest.approx(loss, rel=1e-5)
    valid = list(padded(2, seed=7))
    outs = [expected(b['ids'], b['mask'].double()) for b in valid]
    hits = sum((o.argmax(1) == b['labels']).sum().item() for o, b in zip(outs, valid, strict=True))
    assert learn.history[-1]['acc'] == pytest.approx(hits/sum(len(b['labels']) for b in valid))


@pytest.mark.parametrize(('inputs', 'targets'), NAMED.values(), ids=NAMED)
def test_names_and_functions_take_the_same_items_from_a_batch(inputs, targets):
    learn = masked(inputs=inputs, targets=targets)
    learn.fit(2)
    assert_same_weights(learn.model, plainly_trained()[0])


def test_accumulation_weighs_named_batches_by_their_samples():
    learn = masked(cbs=[AccumulateCB(2)])
    learn.fit(2)
    assert_same_weights(learn.model, plainly_trained(group=2)[0])


def test_captures_hold_the_named_targets_in_order():
    learn, valid = masked(), list(padded(2, seed=7, grow=0))
    learn.dls.valid = valid
    preds, targets = learn.capture_preds()
    assert targets.tolist() == torch.cat([b['labels'] for b in valid]).tolist()
    torch.testing.assert_close(preds, torch.cat([learn.model(b['ids'], b['mask']) for b in valid]))


def test_mixed_precision_takes_named_items_too():
    dls = DataLoaders(list(padded()), [])
    cb = MixedPrecision(dtype=torch.bfloat16, inputs=('ids', 'mask'), targets='labels')
    learn = learner(cb, cls=Learner, model=masked_model(), dls=dls)
    learn.fit(2, valid=False)
    for p, q in zip(learn.model.parameters(), plainly_trained()[0].parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, atol=2e-2, rtol=2e-2)


def test_a_packed_sequence_is_a_batchs_input_and_stays_one():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 2)
        def forward(self, x): return self.out(self.rnn(x)[1][0])
    xs = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (2, 4, 3)]
    batch = nn.utils.rnn.pack_sequence(xs, enforce_sorted=False), torch.tensor([0, 1, 1])
    learn = learner([DeviceCB('cpu')], model=Last(), dls=DataLoaders([batch], [batch]))
    learn.fit(1, train=False)
    alone = torch.cat([learn.model(nn.utils.rnn.pack_sequence([x])) for x in xs])
    torch.testing.assert_close(learn.preds, alone)


def test_without_targets_a_fit_that_only_predicts_runs_and_training_says_what_is_missing():
    learn = masked('dataclass')
    learn.dls = DataLoaders(*[[Sentences(b['ids'], b['mask']) for b in padded(grow=0)]]*2)
    preds, targets = learn.capture_preds()
    assert (len(preds), targets) == (26, None)
    with pytest.raises(ValueError, match='the batch has no targets for cross_entropy'): learn.fit(1)


@pytest.mark.parametrize(('kind', 'said'), [
    ('dict', r"the batch, a dict, has no 'words'; it has \['ids', 'mask', 'labels'\]"),
    ('object', "the batch, a Bag, has no 'words'; it has")])
def test_a_name_that_a_batch_does_not_have_is_an_error_with_those_that_it_has(kind, said):
    with pytest.raises(KeyError, match=said): masked(kind, inputs=('words', 'mask')).fit(1)


@pytest.mark.parametrize('given', [dict(targets='y'), dict(n_inp=2, inputs='x', targets='y')])
def test_names_and_a_number_of_inputs_exclude_each_other(given):
    with pytest.raises(ValueError, match='give either n_inp'): TrainCB(**given)


def test_a_train_learner_given_dicts_says_how_to_name_their_items():
    with pytest.raises(TypeError, match=r'got a dict with keys .*use Learner with TrainCB\(inputs=…'):
        learner(dls=DataLoaders(list(padded()), [])).fit(1, valid=False)


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_with_named_items_resumes_exactly_from_any_batch(kind, tmp_path):
    def make(folder, *cbs):
        return masked(kind, cbs=[MetricsCB(acc=accuracy), AccumulateCB(2), CheckpointCB(folder, batches=1, keep=99),
                                 *cbs])
    assert_resumes_exactly(make, tmp_path, stops=((0, 0), (0, 2), (1, 1), (1, 0, False)))
