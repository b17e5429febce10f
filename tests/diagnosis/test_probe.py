"The callbacks of a check: what they see, and what they give the model."
import torch
import torch.nn.functional as F
from torch import nn

from miniai import DataLoaders, TrainCB
from miniai.callbacks.hf import HFCB
from miniai.diagnosis.few_batches import FewBatchesCB
from miniai.diagnosis.probe import OverfitCB, ProbeCB
from miniai.learner import Learner
from small import Heard, batches, learner, mlp


def probed(learn):
    few = FewBatchesCB(3, 2)
    probe = ProbeCB(few, True)
    learn.fit(1, cbs=[few, probe])
    return probe


def test_it_sees_the_first_batch_of_each_phase_as_the_model_does():
    def double(learn): learn.batch = (learn.batch[0]*2, learn.batch[1])
    probe = probed(learner(Heard({'before_batch': double})))
    (x, y), xv = batches(1)[0], batches(1, seed=2)[0][0]
    assert probe.seen['train']['inputs']['high'] == 2*x.max()
    assert probe.seen['valid']['inputs']['low'] == 2*xv.min()
    assert (probe.seen['train']['n'], probe.seen['train']['targets']['high']) == (6, y.max())
    assert probe.lengths == dict(train=4, valid=2)
    first = F.cross_entropy(learner().model(2*x), y)  # with the same first weights
    assert probe.seen['train']['loss'] == first.item()


def test_it_times_all_but_the_first_batch_of_each_phase():
    probe = probed(learner())
    assert {k: len(v) for k, v in probe.seconds.items()} == dict(train=2, valid=1)


def test_it_counts_memory_and_gradients():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.dead = nn.Linear(4, 3), nn.Linear(2, 2), nn.Parameter(torch.ones(1))
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x): return self.used(x) + 0*self.dead
    probe = probed(learner(model=Idle(), opt_func=torch.optim.Adam))
    assert probe.gradients == dict(n=5, missing=['idle.weight', 'idle.bias'], not_finite=[], zero=['dead'])
    assert probe.memory['parameters'] == 4*(15 + 6 + 1 + 1)
    assert probe.memory['gradients'] == 4*(15 + 6 + 1)
    assert probe.memory['optimizer'] == 4*(2*(15 + 1) + 3)
    assert probe.memory['activations'] > 4*6*3


def repeated(learn, zeros=False, n=5):
    overfit, seen = OverfitCB(zeros), []
    class LookCB:
        order = float('inf')
        def before_batch(self, learn): seen.append(learn.batch)
    learn.fit(1, valid=False, cbs=[FewBatchesCB(n, again=True), overfit, LookCB()])
    return overfit.losses, seen


def test_the_first_batch_is_given_as_callbacks_left_it_once():
    def noise(learn): learn.batch = (learn.batch[0] + torch.rand(1), learn.batch[1])
    losses, seen = repeated(learner(Heard({'before_batch': noise})))
    assert len(losses) == len(seen) == 5
    assert all(torch.equal(x, seen[0][0]) and torch.equal(y, seen[0][1]) for x, y in seen)
    assert losses[-1] < losses[0]


def test_inputs_are_zeros_and_targets_stay():
    _, seen = repeated(learner(), zeros=True)
    assert all(x.any() == 0 and torch.equal(y, batches(1)[0][1]) for x, y in seen)


def test_masks_and_targets_in_a_dict_of_inputs_stay():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 3)

        def forward(self, x, attention_mask, labels):
            class Out: pass
            out = Out()
            out.logits = self.lin(x*attention_mask)
            out.loss = F.cross_entropy(out.logits, labels)
            return out
    b = dict(x=torch.randn(5, 4), attention_mask=torch.ones(5, 1), labels=torch.tensor([0, 1, 2, 1, 0]))
    _, seen = repeated(Learner(Model(), DataLoaders([b], [b]), cbs=HFCB()), zeros=True)
    given, labels = seen[-1]
    assert not given['x'].any()
    assert given['attention_mask'].all()
    assert torch.equal(given['labels'], b['labels'])
    assert torch.equal(labels, b['labels'])


def test_boolean_inputs_stay():
    b = torch.randn(5, 4), torch.ones(5, 1, dtype=torch.bool), torch.tensor([0, 1, 2, 1, 0])
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = mlp()

        def forward(self, x, mask): return self.lin(x*mask)
    _, seen = repeated(Learner(Masked(), DataLoaders([b], [b]), F.cross_entropy, cbs=TrainCB(n_inp=2)), zeros=True)
    assert not seen[0][0].any()
    assert seen[0][1].all()


def test_it_stops_at_a_loss_that_is_not_finite():
    learn = learner(loss_func=lambda p, y: p.sum()*float('nan'))
    learn.check_finite = False
    assert len(repeated(learn)[0]) == 1
