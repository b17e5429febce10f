"Seeds, hooks and activation statistics, by the names that notebooks import."
from miniai.diagnosis.activations import ActivationStats as ActivationStats
from miniai.diagnosis.activations import HooksCallback as HooksCallback
from miniai.diagnosis.activations import append_stats as append_stats
from miniai.diagnosis.activations import get_hist as get_hist
from miniai.diagnosis.activations import get_min as get_min
from miniai.diagnosis.hooks import Hook as Hook
from miniai.diagnosis.hooks import Hooks as Hooks
from miniai.randomness import set_seed as set_seed

__all__ = ['set_seed', 'Hook', 'Hooks', 'HooksCallback', 'append_stats', 'get_hist', 'get_min', 'ActivationStats']
