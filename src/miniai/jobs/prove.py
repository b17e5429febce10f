"""The job that proves that a configuration's runs can be resumed: one is killed halfway and gone on with, another is
not, and their weights are compared to the bit. Knows the parts, and starts processes of its own."""
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from miniai.callbacks.checkpoint import CheckpointCB
from miniai.device import tensors_in
from miniai.events import Callback, CancelFitException

from .build import build_data, build_device, rate_of
from .compute import settled
from .config import ConfigError, ProveConfig
from .train import learner_of

__all__ = ['prove_resume']


def prove_resume(config: ProveConfig) -> bool:
    """Run the job: prints and returns whether the weights and the optimizer's state are the same to the bit.
    ConfigError where the epochs have fewer batches."""
    _check_batches(config)
    config = settled(replace(config, lr=rate_of(config)), build_device(config))
    with TemporaryDirectory(prefix='miniai-prove-') as folder:
        file = Path(folder)/'config.toml'
        file.write_text(config.to_toml(), 'utf-8')
        whole, killed = Path(folder)/'whole', Path(folder)/'killed'
        print(f'a run of {config.batches} batches …', flush=True)
        want = _child(file, whole, 'whole', 0)
        print(f'the same, killed after batch {config.batches//2} …', flush=True)
        _child(file, killed, 'killed', -signal.SIGKILL)
        print('and gone on with …', flush=True)
        got = _child(file, killed, 'resumed', 0)
    print(f'weights and optimizer state are {_compared(want, got)}')
    return want == got


def _check_batches(config: ProveConfig) -> None:
    there = config.epochs*len(build_data(config).train)
    if config.batches <= there: return
    raise ConfigError(f"{config.epochs} epoch(s) of this set have {there} batches, and {config.batches} were asked for")


def _compared(want: str, got: str) -> str:
    if want == got: return f'the same to the bit: sha256 {want[:16]}… both times'
    return f'NOT the same: sha256 {want[:16]}… left alone, {got[:16]}… gone on with'


def _child(file: Path, folder: Path, part: str, code: int) -> str:
    "What a run in a process of its own prints last. RuntimeError where it does not end as it should."
    out = subprocess.run([sys.executable, '-m', __name__, str(file), str(folder), part], capture_output=True, text=True)
    if out.returncode == code: return out.stdout.strip().rpartition('\n')[2]
    raise RuntimeError(f"the {part} run ended with {out.returncode}, not {code}:\n{out.stderr.strip()[-2000:]}")


class _StopCB(Callback):
    "Ends a run after so many training batches: kills the process, or cancels the fit."
    order = CheckpointCB.order
    def __init__(self, batches: int, kill: bool) -> None: self.batches, self.kill = batches, kill
    def after_batch(self, learn: Any) -> None:
        done = learn.epoch*len(learn.dls.train) + learn.iter + 1
        if not learn.training or done < self.batches: return
        if self.kill: os.kill(os.getpid(), signal.SIGKILL)
        raise CancelFitException()


def _digest(learn: Any) -> str:
    sha = hashlib.sha256()
    for t in tensors_in([dict(learn.model.state_dict()), learn.opt.state_dict()['state']]):
        sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _run(file: str, folder: str, part: str) -> None:
    config = ProveConfig.from_toml(Path(file))
    stop = _StopCB(config.batches//2 if part == 'killed' else config.batches, part == 'killed')
    learn = learner_of(config, build_data(config), [CheckpointCB(folder, batches=1), stop])
    learn.fit(config.epochs, resume=part == 'resumed')
    print(_digest(learn))


if __name__ == '__main__': _run(*sys.argv[1:])
