"The five phases as a callback, the device, and one batch alone."
import pytest
import torch
import torch.nn.functional as F

from miniai.callbacks.train import n_inputs
from miniai.datasets import DataLoaders
from miniai.learner import CancelFitException, DeviceCB, Learner, MetricsCB, SingleBatchCB, TrainCB
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


def test_the_number_of_inputs_is_that_of_the_callback_that_trains_or_one():
    assert n_inputs(learner(TrainCB(n_inp=3))) == 3
    assert n_inputs(learner([Heard()])) == 1


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
