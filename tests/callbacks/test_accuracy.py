"How good predictions are."
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniai.callbacks.metrics import accuracy


@given(st.lists(st.tuples(st.permutations(range(4)), st.integers(0, 3)), min_size=1, max_size=20))
def test_accuracy_is_the_share_of_rows_whose_largest_entry_is_at_the_target(rows):
    out, targets = torch.tensor([r for r, _ in rows]).float(), torch.tensor([t for _, t in rows])
    acc = accuracy(out, targets)
    expected = sum(r.index(max(r)) == t for r, t in rows) / len(rows)
    assert acc.shape == ()
    assert acc.dtype == torch.float32
    assert abs(acc.item() - expected) < 1e-6


def test_accuracy_of_pixel_predictions_counts_pixels():
    out = torch.zeros(1, 3, 2, 2)
    out[0, 2] = 1.
    assert accuracy(out, torch.tensor([[[2, 2], [2, 0]]])).item() == .75
