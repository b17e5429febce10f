"Optimizers, schedules and recorders, by the names that notebooks import."
from miniai.callbacks.record import HasLearnCB as HasLearnCB
from miniai.callbacks.record import RecorderCB as RecorderCB
from miniai.optim import SGD as SGD
from miniai.optim import Adam as Adam
from miniai.optim import Momentum as Momentum
from miniai.optim import RMSProp as RMSProp
from miniai.optim import plot_schedule as plot_schedule
from miniai.steps.schedule import BaseSchedCB as BaseSchedCB
from miniai.steps.schedule import BatchSchedCB as BatchSchedCB
from miniai.steps.schedule import EpochSchedCB as EpochSchedCB

__all__ = ['BaseSchedCB', 'BatchSchedCB', 'EpochSchedCB', 'HasLearnCB', 'RecorderCB', 'SGD', 'Momentum', 'RMSProp',
           'Adam', 'plot_schedule']
