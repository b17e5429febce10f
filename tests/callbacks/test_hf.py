"Models that compute their own loss."
from collections import OrderedDict, UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import AccumulateCB, CheckpointCB, DataLoaders, Learner, MetricsCB, MixedPrecision, accuracy
from miniai.accel import AccelerateCB
from miniai.callbacks.hf import HFCB
from resuming import assert_resumes_exactly
from small import learner


@dataclass
class Output(OrderedDict):
    "As a ModelOutput of transformers: a mapping with attributes, in which what is None is missing."
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __post_init__(self):
        if isinstance(self.loss, dict): self.loss, self.logits = self.loss.get('loss'), self.loss.get('logits')
        self.update({k: v for k, v in vars(self).items() if v is not None})


class BatchEncoding(UserDict):
    def to(self, device):
        self.data = {k: v.to(device) for k, v in self.data.items()}
        return self


class Classifier(nn.Module):
    "As a ForSequenceClassification: it takes its labels and returns its own loss."
    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.out((self.emb(input_ids)*attention_mask[..., None]).sum(1))
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


def batches(n=4, seed=1, labels=True):
    g = torch.Generator().manual_seed(seed)
    for i in range(n):
        ids = torch.randint(0, 20, (4 + i, 5), generator=g)
        y = dict(labels=torch.randint(0, 3, (4 + i,), generator=g))
        yield BatchEncoding(dict(input_ids=ids, attention_mask=(ids > 3).float()) | (y if labels else {}))


def model():
    torch.manual_seed(4)
    return Classifier()


def hf_learner(*cbs, train=None, valid=None, loss_func=None, **kwargs):
    dls = DataLoaders(train or list(batches()), valid or list(batches(2, 7)))
    return learner([HFCB(), *cbs], cls=Learner, model=model(), dls=dls, loss_func=loss_func, **kwargs)


def test_a_model_that_computes_its_loss_trains_as_in_plain_pytorch():
    learn = hf_learner(MetricsCB(acc=accuracy))
    learn.fit(2)
    expected = model()
    opt = torch.optim.SGD(expected.parameters(), .1)
    for b in [*batches()]*2:
        expected(**b).loss.backward()
        opt.step()
        opt.zero_grad()
    for p, q in zip(learn.model.parameters(), expected.parameters(), strict=True): assert torch.equal(p, q)
    with torch.no_grad(): outs = [(expected(**b), b['labels']) for b in batches(2, 7)]
    n = sum(len(y) for _, y in outs)
    assert learn.history[-1]['loss'] == pytest.approx(sum(o.loss.item()*len(y) for o, y in outs)/n)
    assert learn.history[-1]['acc'] == pytest.approx(sum((o.logits.argmax(1) == y).sum().item() for o, y in outs)/n)


class HFMixed(HFCB, MixedPrecision): pass
class HFAccelerate(HFCB, AccelerateCB): pass


@pytest.fixture
def afresh():
    "Accelerate keeps its precision for the process; another test may have set it."
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize('cls', [HFMixed, HFAccelerate])
@pytest.mark.usefixtures('afresh')
@pytest.mark.filterwarnings('ignore:AccelerateCB. fp16 needs an accelerator')
def test_such_a_model_trains_in_half_precision_by_a_class_with_two_bases(cls):
    learn = learner(cls(), cls=Learner, model=model(), dls=DataLoaders(list(batches()), []), loss_func=None)
    learn.fit(2, valid=False)
    expected = model()
    opt = torch.optim.SGD(expected.parameters(), .1)
    for b in [*batches()]*2:
        with torch.autocast('cpu', torch.bfloat16): loss = expected(**b).loss
        loss.backward()
        opt.step()
        opt.zero_grad()
    for p, q in zip(learn.model.parameters(), expected.parameters(), strict=True): assert torch.equal(p, q)
    assert not torch.equal(learn.model.out.weight, hf_learner().model.out.weight)


def test_two_sets_of_phases_are_a_warning_that_says_how_to_combine_them():
    said = r'predict is defined by HFCB and MixedPrecision.* class Both\(HFCB, Mixed'
    with pytest.warns(UserWarning, match=said), pytest.raises(ValueError, match='no loss function'):
        hf_learner(MixedPrecision()).fit(1)


def test_accumulated_batches_of_such_a_model_are_one_large_batch():
    learn = hf_learner(AccumulateCB(4))
    learn.fit(1)
    expected = model().double()
    ids, mask, y = (torch.cat([b[k] for b in batches()]) for k in ('input_ids', 'attention_mask', 'labels'))
    expected(ids, mask.double(), y).loss.backward()
    for p, q in zip(learn.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q - .1*q.grad, atol=1e-6, rtol=1e-4)


def test_tokens_that_are_ignored_do_not_count_if_weight_says_so():
    class Tokens(Classifier):
        "As a ForTokenClassification."
        def forward(self, input_ids, labels=None):
            logits = self.out(self.emb(input_ids))
            return Output(None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)
    g = torch.Generator().manual_seed(1)
    bs = [dict(input_ids=torch.randint(0, 20, (3, n), generator=g), labels=torch.randint(0, 3, (3, n), generator=g))
          for n in (2, 5, 9)]
    for b in bs[::2]: b['labels'][:, 1:] = -100
    def tokens(learn): return (learn.batch[1] != -100).sum()
    torch.manual_seed(4)
    learn = learner([HFCB(), AccumulateCB(3, tokens), MetricsCB(weight=tokens)], cls=Learner, model=Tokens().double(),
                    dls=DataLoaders(bs, []), loss_func=None)
    torch.manual_seed(4)
    expected = Tokens().double()
    loss = F.cross_entropy(torch.cat([expected(**b).logits.flatten(0, 1) for b in bs]),
                           torch.cat([b['labels'].flatten() for b in bs]))
    loss.backward()
    learn.fit(1, valid=False)
    assert learn.history[0]['loss'] == pytest.approx(loss.item(), rel=1e-9)
    for p, q in zip(learn.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q - .1*q.grad, rtol=1e-9, atol=1e-12)


def test_predictions_need_no_labels_and_training_does():
    bare = list(batches(2, labels=False))
    learn = hf_learner(train=bare, valid=bare)
    preds, targets = learn.capture_preds()
    assert targets is None
    torch.testing.assert_close(preds, torch.cat([learn.model(**b).logits for b in bare]))
    with pytest.raises((KeyError, ValueError), match='labels'): learn.fit(1)


def test_a_model_without_logits_is_an_error_that_says_what_to_use_instead():
    class Bare(Classifier):
        def forward(self, **batch): return super().forward(**batch).logits
    learn = learner(HFCB(), cls=Learner, model=Bare(), dls=DataLoaders(list(batches()), []))
    with pytest.raises(TypeError, match=r'a Tensor, has no logits; use TrainCB\(inputs=…'): learn.fit(1, valid=False)


def test_such_a_run_resumes_exactly(tmp_path):
    def make(folder, *cbs): return hf_learner(CheckpointCB(folder, batches=1, keep=99), *cbs)
    assert_resumes_exactly(make, tmp_path, stops=((0, 1), (1, 3), (0, 0, False)))
