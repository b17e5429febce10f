"Whether a loss takes outputs otherwise than the model means them, by comparing its value with both ways."
import pytest
import torch
import torch.nn.functional as F

from miniai.diagnosis.mismatch import broadcast_of, takes_softmax_twice

G = torch.Generator().manual_seed(1)
P, Y = torch.randn(8, 1, generator=G), torch.randn(8, generator=G)


@pytest.mark.parametrize('power', [1, 2])
def test_a_loss_of_all_pairs_is_told_from_one_of_matching_pairs(power):
    pairs = [abs(p - y)**power for p in P[:, 0].tolist() for y in Y.tolist()]
    assert broadcast_of(P, Y, sum(pairs)/64) == dict(outputs=[8, 1], targets=[8], made=[8, 8])
    assert broadcast_of(P, Y, sum(pairs[::9])/8) is None
    assert broadcast_of(P, Y[:, None], sum(pairs)/64) is None


def test_outputs_that_are_all_equal_leave_it_open():
    p = torch.full((8, 1), 0.5)
    assert broadcast_of(p, Y, (Y - 0.5).square().mean().item()) is None


def test_probabilities_are_told_from_logits_by_the_loss():
    scores, labels = 3*torch.randn(8, 4, generator=G), torch.randint(0, 4, (8,), generator=G)
    p = scores.softmax(1)
    once, twice = F.cross_entropy(scores, labels).item(), F.cross_entropy(p, labels).item()
    assert takes_softmax_twice(p, labels, twice) is True
    assert takes_softmax_twice(p, labels, once) is False
    assert takes_softmax_twice(scores, labels, once) is False
    assert takes_softmax_twice(torch.full((8, 4), 0.25), labels, 1.386) is None
