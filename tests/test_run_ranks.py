"What tests of several processes stand on: results by rank, the traceback of the rank that fails, and an end to hangs."
import os
import time

import pytest
import torch
import torch.distributed as dist

from ranks import run_ranks


def summed(x):
    total = torch.tensor([x, float(dist.get_rank())])
    dist.all_reduce(total)
    return dist.get_rank(), total.tolist(), os.environ['WORLD_SIZE']


def fails_on_rank_1():
    if dist.get_rank() == 1: raise KeyError('no such thing')
    dist.barrier()


def hangs_on_rank_0():
    while dist.get_rank() == 0: time.sleep(.1)


def ungrouped(): return dist.is_initialized(), os.environ['RANK']


def test_results_come_by_rank():
    assert run_ranks(summed, 3, 2.) == [(rank, [6., 3.], '3') for rank in range(3)]
    assert run_ranks(ungrouped, 2, group=False) == [(False, '0'), (False, '1')]


def test_the_traceback_of_the_rank_that_fails_is_shown_at_once():
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 1, exit code 1:[\s\S]*fails_on_rank_1[\s\S]*no such thing"):
        run_ranks(fails_on_rank_1, 2)
    assert time.monotonic() - began < 50


def test_a_hang_ends_and_shows_its_place():
    with pytest.raises(AssertionError, match=r"rank 0, exit code 1:[\s\S]*hangs_on_rank_0"):
        run_ranks(hangs_on_rank_0, 2, timeout=2)
