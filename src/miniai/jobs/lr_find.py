"The job that suggests a learning rate."
from miniai.callbacks.dry_run import dry_run
from miniai.callbacks.lr_suggestions import LRSuggestions
from miniai.distributed.ranks import is_first
from miniai.jobs.build import auto_lr, build_model, build_optimizer, build_task
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import LRFindConfig
from miniai.jobs.data import build_data
from miniai.jobs.processes import join
from miniai.jobs.run_folder import RunFolder, as_json
from miniai.learner import Learner, LRFinderCB, ProgressCB
from miniai.show.displays import say

__all__ = ['lr_find_job']


def lr_find_job(config: LRFindConfig) -> float | None:
    """Run the job: print and return the suggested learning rate, None if there is none. The run folder gets the curve
    as `lr_find.png` and its values as `lr_find.json`, also after an error or Ctrl-C. Under torchrun the processes train
    together, and the first one prints and writes."""
    config, device = join(config)
    dls = build_data(config)
    folder, config = RunFolder(config.out, 'lr-find'), resolve(config, device)
    folder.write('config.toml', config.to_toml())
    folder.write_environment(device, getattr(dls.train, 'source', config.data))
    cbs = [*build_computing(config, getattr(dls.train, 'n_inp', 1)), ProgressCB()]
    learn = Learner(build_model(config, dls), dls, build_task(dls)[0], cbs=cbs, opt_func=build_optimizer(config))
    auto = auto_lr(config.optimizer, config.schedule)
    finder = _searched(learn, LRFinderCB(), folder, auto)
    if finder.ended_early: finder = _searched(learn, finder.more_patient(), folder, auto)
    say(_report(config, finder.suggestions, auto))
    say(f'curve: {folder.path}/lr_find.png')
    return finder.suggestion


def _searched(learn: Learner, finder: LRFinderCB, folder: RunFolder, auto: float) -> LRFinderCB:
    "The finder after its fit, with what it found in the folder, also after an error."
    with dry_run(learn, trains=True):
        try: learn.fit(100, valid=False, lr=1e-5, cbs=finder)
        finally:
            if finder.ax: _save(folder, finder, auto)
    return finder


def _save(folder: RunFolder, finder: LRFinderCB, auto: float) -> None:
    if not is_first(): return
    values = dict(suggestion=finder.suggestion, auto=auto, **finder.suggestions._asdict())
    folder.write('lr_find.json', as_json(values) + '\n')
    finder.ax.axvline(auto, ls=':', color='C2', label=f'--lr auto: {auto:.1e}')
    finder.ax.legend()
    folder.picture('lr_find.png', finder.ax.figure)


def _report(config: LRFindConfig, found: LRSuggestions, auto: float) -> str:
    if found.half is None: return f'no suggestion: {found.doubt}'
    others = ', '.join(f'{name} {getattr(found, nm):.2g}' for nm, name in (
        ('steepest', 'steepest fall'), ('valley', 'valley'), ('tenth', 'minimum/10')))
    lines = [f'suggested learning rate for {config.optimizer}: {found.half:.2g}',
             f'or, as the peak of a schedule: {found.peak:.2g}',
             f'others: {others}',
             f'all but the peak agree within a factor of {found.spread:.1f}',
             *([f'do not rely on them: {found.doubt}'] if found.doubt else []),
             f'--lr auto with the {config.schedule} schedule: {auto:.2g}']
    suggested = found.half if config.schedule == 'constant' else found.peak
    if not 1/3 <= suggested/auto <= 3:
        lines += ['They differ: auto was tuned for the simple model',
                  'and batches of 128, not for this run.']
    return '\n'.join(lines)
