"Trackers: programs that keep and show the figures of many runs. One file for each, which uses its own library."
from miniai.trackers.csv import CSVTracker
from miniai.trackers.mlflow import MLflowTracker
from miniai.trackers.tensorboard import TensorBoardTracker
from miniai.trackers.tracker import Tracker
from miniai.trackers.trackio import TrackioTracker
from miniai.trackers.wandb import WandbTracker

__all__ = ['TRACKERS', 'Tracker']

TRACKERS: dict[str, type[Tracker]] = dict(tensorboard=TensorBoardTracker, trackio=TrackioTracker, wandb=WandbTracker,
                                          mlflow=MLflowTracker, csv=CSVTracker)
