"The memory for copies of a state is allocated once and reused."
import pytest
import torch

from miniai.checkpoint import Saver, load
from miniai.checkpoint.snapshot import Content, CopyBuffer
from states import everything, same


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


@pytest.mark.parametrize('n', [3, 3_000_000])
def test_copies_hold_the_bytes_of_each_tensor_in_the_order_of_the_file(n):
    content = Content([torch.arange(n, dtype=torch.int8), torch.rand(n//3)])
    copies = CopyBuffer().copies(content)
    assert [bytes(c) for c in copies] == [bytes(m) for m in content.memories()]
    assert content.size == len(content.head) + sum(map(len, copies))


def test_a_save_uses_the_memory_that_was_reserved(path):
    with Saver() as saver:
        saver.reserve(everything())
        taken = saver._buffer.memory
        saver.save(path, everything())
        assert saver._buffer.memory is taken
    assert same(load(path), everything())


def test_the_memory_is_large_enough_for_a_state_that_grows_a_little(path):
    with Saver() as saver:
        for n in (1_000_000, 1_050_000, 1_000_000):
            saver.save(path, torch.zeros(n))
            saver.wait()
            if n == 1_000_000: first = saver._buffer.memory
        assert saver._buffer.memory is first
