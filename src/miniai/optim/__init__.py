"Optimizers that are their equations: rules, what runs them, and their public faces."
from .classes import SGD as SGD
from .classes import Adam as Adam
from .classes import Momentum as Momentum
from .classes import RMSProp as RMSProp
from .math import maximum as maximum
from .math import minimum as minimum
from .math import sign as sign
from .math import sqrt as sqrt
from .math import where as where
from .optimizer import RuleOptimizer as RuleOptimizer
from .optimizer import optimizer as optimizer
from .rules import starts as starts
from .schedules import plot_schedule as plot_schedule

__all__ = ['SGD', 'Momentum', 'RMSProp', 'Adam', 'RuleOptimizer', 'optimizer', 'starts', 'plot_schedule',
           'sqrt', 'sign', 'where', 'maximum', 'minimum']
