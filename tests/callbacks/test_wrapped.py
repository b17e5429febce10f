"A wrapped loader gives the batches of its loader, then makes a call."
import pytest

from miniai.callbacks.wrapped import WrappedLoader


class FromTheMiddle(list): first_batch = 3


def test_the_call_follows_the_last_batch_and_is_made_once_per_pass():
    log = []
    dl = WrappedLoader([1, 2], lambda: log.append('end'))
    for n in (1, 2):
        for batch in dl: log.append(batch)
        assert log == [1, 2, 'end']*n


def test_a_pass_that_stops_early_makes_no_call():
    dl = WrappedLoader([1, 2], lambda: pytest.fail('called'))
    assert next(iter(dl)) == 1


@pytest.mark.parametrize('at_end', [None, lambda: None])
def test_batches_length_and_first_batch_are_those_of_the_loader(at_end):
    dl = WrappedLoader(FromTheMiddle('abc'), at_end)
    assert (list(dl), len(dl), dl.first_batch) == (['a', 'b', 'c'], 3, 3)
    assert WrappedLoader([1], at_end).first_batch == 0
