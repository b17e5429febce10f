"The job that looks for a learning rate and draws what it saw. Knows the parts and where they go."
import torch.nn.functional as F

from miniai.jobs.build import OPTIMIZERS, build_data, build_device, build_model
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import LRFindConfig
from miniai.jobs.run_folder import RunFolder, as_json
from miniai.learner import DeviceCB, Learner, LRFinderCB, ProgressCB

__all__ = ['lr_find_job']


def lr_find_job(config: LRFindConfig) -> float | None:
    """Run the job: prints and returns the suggested rate. The run folder gets `lr_find.png`, and its figures as
    `lr_find.json`, which an error or Ctrl-C does not prevent."""
    device, dls, finder = build_device(config), build_data(config), LRFinderCB()
    folder, config = RunFolder(config.out, 'lr-find'), resolve(config, device)
    folder.write('config.toml', config.to_toml())
    folder.write_environment(device, dls.train.source)
    cbs = [DeviceCB(device), *build_computing(config), ProgressCB()]
    learn = Learner(build_model(config), dls, F.cross_entropy, cbs=cbs, opt_func=OPTIMIZERS[config.optimizer])
    try: learn.fit(100, valid=False, lr=1e-5, cbs=finder)
    finally: _leave(folder, finder)
    print(f'suggested learning rate for {config.optimizer}: {finder.suggestion:.2g}' if finder.suggestion else
          'no suggestion: the loss never fell clearly')
    print(f'the curve is in {folder.path}/lr_find.png')
    return finder.suggestion


def _leave(folder: RunFolder, finder: LRFinderCB) -> None:
    if not finder.ax: return
    figures = dict(suggestion=finder.suggestion, lrs=finder.lrs, losses=finder.losses)
    folder.write('lr_find.json', as_json(figures) + '\n')
    folder.picture('lr_find.png', finder.ax.figure)
