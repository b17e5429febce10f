"Optimizers written as their equations: rules, the classes made from them, and what runs them."
from miniai.kernels.math import maximum as maximum
from miniai.kernels.math import minimum as minimum
from miniai.kernels.math import sign as sign
from miniai.kernels.math import sqrt as sqrt
from miniai.kernels.math import where as where
from miniai.kernels.matrix import column_means as column_means
from miniai.kernels.matrix import eigenbasis as eigenbasis
from miniai.kernels.matrix import eigenorder as eigenorder
from miniai.kernels.matrix import inverse_root as inverse_root
from miniai.kernels.matrix import largest as largest
from miniai.kernels.matrix import matmul as matmul
from miniai.kernels.matrix import mean as mean
from miniai.kernels.matrix import norm as norm
from miniai.kernels.matrix import normal as normal
from miniai.kernels.matrix import orthogonalize as orthogonalize
from miniai.kernels.matrix import orthonormal as orthonormal
from miniai.kernels.matrix import reordered as reordered
from miniai.kernels.matrix import rms as rms
from miniai.kernels.matrix import row_means as row_means
from miniai.kernels.matrix import solved as solved
from miniai.kernels.matrix import spectral_bound as spectral_bound
from miniai.kernels.matrix import trace as trace
from miniai.kernels.matrix import transpose as transpose
from miniai.kernels.matrix import upper as upper
from miniai.optim.classes import ADOPT as ADOPT
from miniai.optim.classes import LAMB as LAMB
from miniai.optim.classes import MARS as MARS
from miniai.optim.classes import SGD as SGD
from miniai.optim.classes import SOAP as SOAP
from miniai.optim.classes import Adafactor as Adafactor
from miniai.optim.classes import Adagrad as Adagrad
from miniai.optim.classes import Adam as Adam
from miniai.optim.classes import AdamW as AdamW
from miniai.optim.classes import AdEMAMix as AdEMAMix
from miniai.optim.classes import HeavyBall as HeavyBall
from miniai.optim.classes import Kron as Kron
from miniai.optim.classes import Lion as Lion
from miniai.optim.classes import Momentum as Momentum
from miniai.optim.classes import Muon as Muon
from miniai.optim.classes import NAdamW as NAdamW
from miniai.optim.classes import Nesterov as Nesterov
from miniai.optim.classes import NorMuon as NorMuon
from miniai.optim.classes import Prodigy as Prodigy
from miniai.optim.classes import RAdam as RAdam
from miniai.optim.classes import RMSProp as RMSProp
from miniai.optim.classes import ScheduleFreeAdamW as ScheduleFreeAdamW
from miniai.optim.classes import ScheduleFreeSGD as ScheduleFreeSGD
from miniai.optim.classes import Scion as Scion
from miniai.optim.classes import Shampoo as Shampoo
from miniai.optim.groups import depth_groups as depth_groups
from miniai.optim.groups import groups_table as groups_table
from miniai.optim.groups import no_decay_groups as no_decay_groups
from miniai.optim.matrices import matrix_groups as matrix_groups
from miniai.optim.optimizer import RuleOptimizer as RuleOptimizer
from miniai.optim.optimizer import optimizer as optimizer
from miniai.optim.rules import evaluated as evaluated
from miniai.optim.rules import matrix as matrix
from miniai.optim.rules import scalars as scalars
from miniai.optim.rules import starts as starts
from miniai.optim.rules import totals as totals
from miniai.optim.schedules import plot_schedule as plot_schedule
from miniai.optim.schedules import warmup_cosine as warmup_cosine

__all__ = ['SGD', 'Momentum', 'HeavyBall', 'Nesterov', 'RMSProp', 'Adagrad', 'Adam', 'AdamW', 'NAdamW', 'RAdam',
           'ScheduleFreeSGD', 'ScheduleFreeAdamW', 'Prodigy', 'ADOPT', 'AdEMAMix', 'MARS', 'Lion', 'LAMB', 'Muon',
           'Scion', 'NorMuon', 'SOAP', 'Shampoo', 'Adafactor', 'Kron', 'RuleOptimizer', 'optimizer', 'starts',
           'scalars', 'matrix', 'evaluated', 'totals', 'plot_schedule', 'warmup_cosine', 'no_decay_groups',
           'depth_groups', 'matrix_groups', 'groups_table', 'sqrt', 'sign', 'where', 'maximum', 'minimum', 'norm',
           'mean', 'trace', 'transpose', 'matmul', 'rms', 'largest', 'normal', 'upper', 'solved', 'spectral_bound',
           'row_means', 'column_means', 'orthogonalize', 'orthonormal', 'eigenbasis', 'eigenorder', 'reordered',
           'inverse_root']
