"What a batch holds, for tuples, nests, sequences of different lengths and graphs."
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from miniai.learner import TrainCB
from miniai.metrics.batch import batch_size, checked, inputs_of, n_inputs, target_slice
from small import Heard, learner


class Items:
    "Its items are its attributes."
    def __getattr__(self, name): return dict(__name__='items')[name]


@pytest.mark.parametrize(('batch', 'size'), [
    ((torch.ones(5, 2), torch.ones(7)), 5), (torch.ones(3), 3), ([{'a': torch.ones(4, 1)}, torch.ones(2)], 4),
    ((torch.tensor(1.), torch.ones(2)), 1), ((), 1), ('text', 1),
    ((pack_sequence([torch.ones(4), torch.ones(3), torch.ones(1)]), torch.ones(3)), 3),
    ((SimpleNamespace(num_graphs=6), torch.ones(6)), 6), (SimpleNamespace(num_graphs=2), 2), (Items(), 1)])
def test_a_batch_has_as_many_samples_as_its_first_tensor_is_long_sequences_and_graphs_as_many_as_there_are(batch, size):
    assert batch_size(batch) == size


def test_the_number_of_inputs_is_that_of_the_callback_that_trains_or_one():
    assert n_inputs(learner(TrainCB(n_inp=3))) == 3
    assert n_inputs(learner([Heard()])) == 1


def test_the_targets_are_what_the_loss_gets():
    batch = tuple('abcd')
    assert batch[target_slice(learner(TrainCB(n_inp=2)))] == ('c', 'd')
    assert batch[target_slice(learner())] == ('b',)
    assert inputs_of(batch, 2) == ('a', 'b')


@pytest.mark.parametrize(('batch', 'says'), [
    (torch.ones(2, 3), r'a bare tensor of shape \(2, 3\)'), (dict(x=1), r"a dict with keys \['x'\]"),
    ('text', 'a str')])
def test_a_batch_that_is_no_tuple_is_an_error_that_says_what_it_is(batch, says):
    with pytest.raises(TypeError, match=f'a batch must be a tuple .inputs, targets., got {says}: use Learner with '
                                        f'TrainCB'): checked(batch)
