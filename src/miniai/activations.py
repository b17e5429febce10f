"Looking at activations: seeds, hooks and their statistics, by the names that user code imports."
import random

import numpy as np
import torch

from miniai.callbacks.stats import ActivationStats as ActivationStats
from miniai.callbacks.stats import HooksCallback as HooksCallback
from miniai.callbacks.stats import append_stats as append_stats
from miniai.callbacks.stats import get_hist as get_hist
from miniai.callbacks.stats import get_min as get_min
from miniai.hooks import Hook as Hook
from miniai.hooks import Hooks as Hooks

__all__ = ['set_seed', 'Hook', 'Hooks', 'HooksCallback', 'append_stats', 'get_hist', 'get_min', 'ActivationStats']


def set_seed(seed: int, deterministic: bool = False) -> None:
    "Seed torch, numpy and random; `deterministic` also asks torch for deterministic algorithms."
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
