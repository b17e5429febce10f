"The pass by Numba steps, counts and sums over addresses alone."
import pytest
import torch

from miniai.kernels.fused import FusedPass
from passes import CHECKS


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('check', CHECKS)
def test_what_every_pass_must_do(check, dtype): check(FusedPass, dtype)
