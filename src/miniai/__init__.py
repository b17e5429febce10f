"miniai: train PyTorch models with accelerated SGD. The names that a user types first."
from miniai.callbacks.early_stopping import EarlyStoppingCB as EarlyStoppingCB
from miniai.callbacks.metrics import MetricsCB as MetricsCB
from miniai.callbacks.metrics import accuracy as accuracy
from miniai.callbacks.progress import ProgressCB as ProgressCB
from miniai.callbacks.record import RecorderCB as RecorderCB
from miniai.callbacks.schedule import BatchSchedCB as BatchSchedCB
from miniai.callbacks.schedule import EpochSchedCB as EpochSchedCB
from miniai.callbacks.train import DeviceCB as DeviceCB
from miniai.callbacks.train import TrainCB as TrainCB
from miniai.data.fmnist import fashion_mnist as fashion_mnist
from miniai.data.fmnist import image_loaders as image_loaders
from miniai.data.loaders import DataLoaders as DataLoaders
from miniai.data.seeded import SeededSamples as SeededSamples
from miniai.diagnosis.activations import ActivationStats as ActivationStats
from miniai.diagnosis.profile import ProfileCB as ProfileCB
from miniai.events import Callback as Callback
from miniai.learner import Learner as Learner
from miniai.learner import TrainLearner as TrainLearner
from miniai.optim import optimizer as optimizer
from miniai.optim.classes import SGD as SGD
from miniai.optim.classes import Adam as Adam
from miniai.optim.classes import Momentum as Momentum
from miniai.optim.classes import RMSProp as RMSProp
from miniai.optim.schedules import plot_schedule as plot_schedule
from miniai.resume.checkpoint import CheckpointCB as CheckpointCB
from miniai.resume.state import ResumeError as ResumeError

__version__ = '0.1.0'
__all__ = ['Learner', 'TrainLearner', 'Callback', 'TrainCB', 'DeviceCB', 'MetricsCB', 'ProgressCB', 'ProfileCB',
           'CheckpointCB', 'ResumeError', 'EarlyStoppingCB', 'RecorderCB', 'BatchSchedCB', 'EpochSchedCB',
           'ActivationStats', 'DataLoaders', 'SeededSamples', 'fashion_mnist', 'image_loaders', 'accuracy', 'SGD',
           'Momentum', 'RMSProp', 'Adam', 'optimizer', 'plot_schedule']
