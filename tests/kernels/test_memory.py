"Memory: tensors without gaps, and their pieces."
import numpy as np
import torch

from miniai.kernels.memory import BLOCK, blocks, chunks, irregular, whole


def test_a_tensor_is_regular_if_its_elements_fill_their_memory_in_any_order():
    x = torch.zeros(4, 6, 2)
    for good in (x, x.permute(2, 0, 1), x[1:3], x[:, :, None], torch.zeros(()), torch.zeros(3, 0)):
        assert irregular(good) == ''
    for bad in (x[:, ::2], x[:, :1].expand(4, 6, 2), x.permute(2, 0, 1)[:, 1:, 2:]):
        assert irregular(bad) == 'its layout has gaps or overlaps'
    assert irregular(torch._neg_view(x)) == 'it is a lazily negated view'


def test_chunks_cover_each_run_once_and_say_where_it_is_in_the_whole():
    found = chunks([([0], 5), ([], 3), ([10, 40], 3)], 2)
    assert found.tolist() == [[0, 0, 2, 0], [0, 2, 2, 2], [0, 4, 1, 4],
                              [2, 0, 2, 10], [2, 2, 1, 12], [2, 3, 2, 40], [2, 5, 1, 42]]
    assert chunks(whole([0, 3]), 9).tolist() == [[1, 0, 3, 0]]
    assert chunks([], 9).shape == (0, 4)


def test_blocks_are_counted_chunk_by_chunk():
    at, rows = blocks(np.array([[0, 0, BLOCK + 1, 0], [2, 0, BLOCK, 0], [3, 0, 1, 0]]))
    assert at.tolist() == [0, 2, 3]
    assert rows.tolist() == [0, 0, 2, 3]
