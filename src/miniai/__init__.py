"miniai: train PyTorch models with accelerated SGD. The names that a user types first."
from miniai.callbacks.accumulate import AccumulateCB as AccumulateCB
from miniai.callbacks.batch import BatchTransformCB as BatchTransformCB
from miniai.callbacks.freeze import FreezeCB as FreezeCB
from miniai.callbacks.hf import HFCB as HFCB
from miniai.callbacks.mix import MixUpCB as MixUpCB
from miniai.callbacks.passes import MaxBatchesCB as MaxBatchesCB
from miniai.callbacks.precision import MixedPrecision as MixedPrecision
from miniai.callbacks.progress import ProgressCB as ProgressCB
from miniai.callbacks.record import RecorderCB as RecorderCB
from miniai.callbacks.track import TrackCB as TrackCB
from miniai.callbacks.train import DeviceCB as DeviceCB
from miniai.callbacks.train import TrainCB as TrainCB
from miniai.data.fmnist import fashion_mnist as fashion_mnist
from miniai.data.fmnist import image_loaders as image_loaders
from miniai.data.loaders import DataLoaders as DataLoaders
from miniai.data.memory import MemoryLoader as MemoryLoader
from miniai.data.seeded import SeededSamples as SeededSamples
from miniai.diagnosis.activations import ActivationStats as ActivationStats
from miniai.diagnosis.health import HealthCB as HealthCB
from miniai.diagnosis.profile import ProfileCB as ProfileCB
from miniai.events import Callback as Callback
from miniai.events import CancelBatchException as CancelBatchException
from miniai.events import CancelEpochException as CancelEpochException
from miniai.events import CancelFitException as CancelFitException
from miniai.inference.model_file import load as load
from miniai.inference.predictor import Predictor as Predictor
from miniai.learner import Learner as Learner
from miniai.learner import TrainLearner as TrainLearner
from miniai.metrics.accuracy import accuracy as accuracy
from miniai.metrics.accuracy import binary_accuracy as binary_accuracy
from miniai.metrics.best import BestCB as BestCB
from miniai.metrics.early_stopping import EarlyStoppingCB as EarlyStoppingCB
from miniai.metrics.metrics import MetricsCB as MetricsCB
from miniai.metrics.whole import Whole as Whole
from miniai.models.by_name import build_model as build_model
from miniai.optim import SGD as SGD
from miniai.optim import Adam as Adam
from miniai.optim import AdamW as AdamW
from miniai.optim import Lion as Lion
from miniai.optim import Momentum as Momentum
from miniai.optim import RMSProp as RMSProp
from miniai.optim import optimizer as optimizer
from miniai.optim import plot_schedule as plot_schedule
from miniai.optim import warmup_cosine as warmup_cosine
from miniai.racing.race import race as race
from miniai.randomness import set_seed as set_seed
from miniai.resume.checkpoint import CheckpointCB as CheckpointCB
from miniai.resume.restore import ResumeError as ResumeError
from miniai.steps.average import AverageCB as AverageCB
from miniai.steps.in_backward import StepInBackwardCB as StepInBackwardCB
from miniai.steps.plateau import PlateauCB as PlateauCB
from miniai.steps.schedule import BatchSchedCB as BatchSchedCB
from miniai.steps.schedule import EpochSchedCB as EpochSchedCB
from miniai.steps.sharpness import SAMCB as SAMCB

__version__ = '0.3.0'
__all__ = [
    'Learner', 'TrainLearner', 'Callback', 'CancelBatchException', 'CancelEpochException', 'CancelFitException',
    'TrainCB', 'HFCB', 'DeviceCB', 'MixedPrecision', 'AccumulateCB', 'MetricsCB', 'accuracy', 'binary_accuracy',
    'Whole', 'ProgressCB', 'RecorderCB', 'BatchSchedCB', 'EpochSchedCB', 'PlateauCB', 'warmup_cosine', 'plot_schedule',
    'EarlyStoppingCB', 'BestCB', 'FreezeCB', 'MaxBatchesCB', 'AverageCB', 'StepInBackwardCB', 'SAMCB',
    'BatchTransformCB', 'MixUpCB', 'ActivationStats', 'HealthCB', 'ProfileCB', 'TrackCB', 'CheckpointCB', 'ResumeError',
    'Predictor', 'load', 'build_model', 'race', 'DataLoaders', 'MemoryLoader', 'SeededSamples', 'fashion_mnist',
    'image_loaders', 'set_seed', 'SGD', 'Momentum', 'RMSProp', 'Adam', 'AdamW', 'Lion', 'optimizer']
