"Optimizers that are their equations: rules, what runs them, and their public faces."
from .classes import SGD as SGD
from .classes import Adagrad as Adagrad
from .classes import Adam as Adam
from .classes import AdamW as AdamW
from .classes import HeavyBall as HeavyBall
from .classes import Lion as Lion
from .classes import Momentum as Momentum
from .classes import NAdamW as NAdamW
from .classes import Nesterov as Nesterov
from .classes import RMSProp as RMSProp
from .groups import depth_groups as depth_groups
from .groups import groups_table as groups_table
from .groups import no_decay_groups as no_decay_groups
from .math import maximum as maximum
from .math import minimum as minimum
from .math import sign as sign
from .math import sqrt as sqrt
from .math import where as where
from .optimizer import RuleOptimizer as RuleOptimizer
from .optimizer import optimizer as optimizer
from .rules import scalars as scalars
from .rules import starts as starts
from .schedules import plot_schedule as plot_schedule

__all__ = ['SGD', 'Momentum', 'HeavyBall', 'Nesterov', 'RMSProp', 'Adagrad', 'Adam', 'AdamW', 'NAdamW', 'Lion',
           'RuleOptimizer', 'optimizer', 'starts', 'scalars', 'plot_schedule', 'no_decay_groups', 'depth_groups',
           'groups_table', 'sqrt', 'sign', 'where', 'maximum', 'minimum']
