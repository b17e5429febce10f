"The job that checks that runs of `miniai train` resume exactly."
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

from miniai.jobs.build import build_device, build_model, build_optimizer, epochs, learning_rate
from miniai.jobs.compute import resolve
from miniai.jobs.config import ConfigError, ProveConfig
from miniai.jobs.data import build_data
from miniai.jobs.recording import Recording, has_activations
from miniai.jobs.run_folder import RunFolder
from miniai.jobs.train import build_learner
from miniai.learner import Learner
from miniai.resume.prove import prove_learner
from miniai.resume.signals import terminable

__all__ = ['prove_resume']


def prove_resume(config: ProveConfig) -> bool:
    """Run the job: print what it does and finds; return whether a killed and resumed run equals an uninterrupted one,
    bit for bit. ConfigError if the epochs have too few batches, ProofError if a run fails."""
    dls = build_data(config)
    per_epoch, config = len(dls.train), replace(config, epochs=epochs(config, dls), lr=learning_rate(config, dls))
    if config.batches > config.epochs*per_epoch:
        raise ConfigError(f"batches is {config.batches}, but {config.epochs} epoch(s) of this data have only "
                          f"{config.epochs*per_epoch}: use fewer batches or more epochs")
    config = resolve(config, build_device(config))
    with terminable(), TemporaryDirectory(prefix='miniai-prove-') as folder:
        proof = prove_learner(partial(_learner, config, folder), config.epochs, config.batches)
    print(proof)
    if config.batches <= per_epoch and config.epochs > 1:
        print(f'only one epoch was tested: --batches {per_epoch + 2} also kills the run in a second one')
    return proof.same


def _learner(config: ProveConfig, folder: str) -> Learner:
    "The Learner of `miniai train`, with a new run folder inside `folder`."
    dls = build_data(config)
    model, opt_func = build_model(config, dls), build_optimizer(config)
    recording = Recording(RunFolder(f'{folder}/{{time}}', 'prove'), has_activations(model))
    return build_learner(config, dls, recording.cbs, model, opt_func)
