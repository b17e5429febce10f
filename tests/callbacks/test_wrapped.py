"A loader with something added around it."
import pytest

from miniai.callbacks.wrapped import MappedLoader, WrappedLoader


def test_it_gives_the_batches_of_its_loader_and_then_calls_what_it_was_given():
    log = []
    for batch in WrappedLoader([1, 2], at_end=lambda: log.append('end')): log.append(batch)
    assert log == [1, 2, 'end']
    assert list(WrappedLoader([1, 2])) == [1, 2]


def test_a_pass_that_is_left_early_never_ends():
    log = []
    for _ in WrappedLoader([1, 2], at_end=lambda: log.append('end')): break
    assert log == []


def test_it_has_the_length_and_the_first_batch_of_its_loader():
    class Rest(list): first_batch = 3
    wrapped = WrappedLoader(WrappedLoader(Rest([1, 2])))
    assert (len(wrapped), wrapped.first_batch, WrappedLoader([1]).first_batch) == (2, 3, 0)
    with pytest.raises(TypeError): len(WrappedLoader(iter([1])))


def test_a_mapped_loader_changes_each_batch_as_it_is_loaded_and_keeps_length_and_first_batch():
    class Rest(list): first_batch = 3
    loaded = []
    mapped = MappedLoader(Rest([1, 2]), lambda b: loaded.append(b) or b*10)
    assert (len(mapped), mapped.first_batch) == (2, 3)
    assert next(iter(mapped)) == 10
    assert loaded == [1]
    assert list(mapped) == [10, 20]
