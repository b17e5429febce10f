"BatchTransformCB: batches transformed before the model sees them."
import pytest

from miniai.init import BatchTransformCB
from small import learner


@pytest.mark.parametrize('on_train', [True, False])
@pytest.mark.parametrize('on_val', [True, False])
def test_batches_are_transformed_in_the_phases_asked_for(on_train, on_val):
    seen = []
    class Look:
        def after_predict(self, learn): seen.append((learn.training, bool(learn.batch[0].eq(0).all())))
    cb = BatchTransformCB(lambda b: (b[0]*0, b[1]), on_train=on_train, on_val=on_val)
    learner([cb, Look()]).fit(1)
    assert seen == [(True, on_train)]*4 + [(False, on_val)]*2


def test_batches_are_transformed_in_both_phases_by_default():
    calls = []
    learner(BatchTransformCB(lambda b: calls.append(1) or b)).fit(1)
    assert len(calls) == 6
