"miniai: train PyTorch models with accelerated SGD. The names that a user types first."
from miniai.callbacks.checkpoint import CheckpointCB as CheckpointCB
from miniai.callbacks.early_stopping import EarlyStoppingCB as EarlyStoppingCB
from miniai.callbacks.profile import ProfileCB as ProfileCB
from miniai.callbacks.record import RecorderCB as RecorderCB
from miniai.callbacks.run_state import ResumeError as ResumeError
from miniai.callbacks.schedule import BatchSchedCB as BatchSchedCB
from miniai.callbacks.schedule import EpochSchedCB as EpochSchedCB
from miniai.callbacks.stats import ActivationStats as ActivationStats
from miniai.data import DataLoaders as DataLoaders
from miniai.data import SeededSamples as SeededSamples
from miniai.data import fashion_mnist as fashion_mnist
from miniai.data import image_loaders as image_loaders
from miniai.learner import Callback as Callback
from miniai.learner import DeviceCB as DeviceCB
from miniai.learner import Learner as Learner
from miniai.learner import MetricsCB as MetricsCB
from miniai.learner import ProgressCB as ProgressCB
from miniai.learner import TrainCB as TrainCB
from miniai.learner import TrainLearner as TrainLearner
from miniai.measures import accuracy as accuracy
from miniai.optim import SGD as SGD
from miniai.optim import Adam as Adam
from miniai.optim import Momentum as Momentum
from miniai.optim import RMSProp as RMSProp
from miniai.optim import optimizer as optimizer
from miniai.optim import plot_schedule as plot_schedule

__version__ = '0.1.0'
__all__ = ['Learner', 'TrainLearner', 'Callback', 'TrainCB', 'DeviceCB', 'MetricsCB', 'ProgressCB', 'ProfileCB',
           'CheckpointCB', 'ResumeError', 'EarlyStoppingCB', 'RecorderCB', 'BatchSchedCB', 'EpochSchedCB',
           'ActivationStats', 'DataLoaders', 'SeededSamples', 'fashion_mnist', 'image_loaders', 'accuracy', 'SGD',
           'Momentum', 'RMSProp', 'Adam', 'optimizer', 'plot_schedule']
