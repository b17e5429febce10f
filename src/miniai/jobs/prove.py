"""The job that proves that a configuration's runs, as `miniai train` makes them, can be resumed. Knows configurations
and the proof."""
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

from miniai.jobs.build import build_data, build_device, rate_of
from miniai.jobs.compute import resolve
from miniai.jobs.config import ConfigError, ProveConfig
from miniai.jobs.recording import Recording
from miniai.jobs.run_folder import RunFolder
from miniai.jobs.train import learner_of
from miniai.learner import Learner
from miniai.resume.prove import prove_learner
from miniai.resume.signals import terminable

__all__ = ['prove_resume']


def prove_resume(config: ProveConfig) -> bool:
    """Run the job: prints what it does and finds, and returns whether a run killed and gone on with has everything the
    same to the bit as one left alone. ConfigError where the epochs have fewer batches, ProofError where a run fails."""
    per_epoch = len(build_data(config).train)
    _check_batches(config, per_epoch)
    config = resolve(replace(config, lr=rate_of(config)), build_device(config))
    with terminable(), TemporaryDirectory(prefix='miniai-prove-') as folder:
        proof = prove_learner(partial(_learner, config, folder), config.epochs, config.batches)
    print(proof)
    if config.batches <= per_epoch and config.epochs > 1:
        print(f'all batches were of one epoch: --batches {per_epoch + 2} kills the run in a second one too')
    return proof.same


def _check_batches(config: ProveConfig, per_epoch: int) -> None:
    there = config.epochs*per_epoch
    if config.batches <= there: return
    raise ConfigError(f"{config.epochs} epoch(s) of this set have {there} batches, and {config.batches} were asked for")


def _learner(config: ProveConfig, folder: str) -> Learner:
    "What `miniai train` trains and records with, into a new folder within `folder`."
    return learner_of(config, build_data(config), Recording(RunFolder(f'{folder}/{{time}}', 'prove')).cbs)
