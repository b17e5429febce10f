"Proof that a Learner's runs resume exactly: a run that is killed and resumed, compared with one that is not."
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, SupportsIndex

from torch import Tensor

from miniai.checkpoint import load, save
from miniai.events import Callback, CancelFitException
from miniai.randomness import set_seed
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.differences import differences, leaves
from miniai.resume.signals import held, terminable
from miniai.resume.state import run_state

__all__ = ['prove_learner', 'Proof', 'ProofError']

Place = tuple[int, int]  # an epoch, from 0, and how many of its training batches are done
_SHOWN = 5  # differences, or last lines of output


class ProofError(RuntimeError):
    "A run of a proof failed, so nothing is proved. The message has its last output; its traceback is a note."


@dataclass(frozen=True)
class Proof:
    """The outcome of a proof: where runs were killed (epoch from 0, training batches done), what was compared, and what
    differs, by name. As text it says all this."""
    kills: list[Place]
    compared: str
    differs: dict[str, str]
    repeats: bool = True
    "Are two uninterrupted runs the same? Checked only if the resumed one differs."

    @property
    def same(self) -> bool:
        "Is everything the same to the bit?"
        return not self.differs

    def __str__(self) -> str:
        if self.same: return f'identical to the bit: {self.compared}'
        shown = '; '.join(f'{nm} ({values})' for nm, values in list(self.differs.items())[:_SHOWN])
        more = f'; and {len(self.differs) - _SHOWN:,} more' if len(self.differs) > _SHOWN else ''
        text = f'NOT identical: {shown}{more}\ncompared: {self.compared}'
        if not self.repeats: return (f"{text}\ntwo uninterrupted runs differ too, so no run can be resumed exactly: "
                                     f"something draws random numbers without a seed, or computes in no fixed order")
        return text


def prove_learner(make: Callable[[], Any], n_epochs: int = 2, batches: int | None = None,
                  kills: Sequence[Place] | None = None, leave_out: Collection[str] = ('seconds',),
                  say: Callable[[str], Any] = print, lr: float | None = None, valid: bool = True) -> Proof:
    """Prove, or disprove, that runs of the Learner that `make()` returns resume exactly. `learn.fit(n_epochs, lr=lr,
    valid=valid)` runs in a fresh process, to its end or for `batches` training batches; then again with checkpoints,
    killed at each of `kills` (by default in the middle of the first and of the last epoch) and resumed. Everything in
    `run_state` is compared, except names in `leave_out`. A script calls it under `if __name__ == '__main__':`.

    TypeError if a fresh process cannot import `make`; ValueError for impossible counts and places; ProofError if a run
    fails or refuses to resume. Ctrl-C and SIGTERM leave neither processes nor files behind."""
    for nm, n in (('n_epochs', n_epochs), ('batches', 1 if batches is None else batches)):
        if isinstance(n, bool) or not isinstance(n, SupportsIndex) or n < 1:
            raise ValueError(f"{nm} must be a whole number above 0, got {n!r}")
    try: task = pickle.dumps((make, dict(n_epochs=n_epochs, lr=lr, valid=valid)))
    except Exception as e:
        raise TypeError(f"fresh processes must be able to import make: give a function defined at the top level of a "
                        f"module or script, or a functools.partial of one ({e})") from e
    with terminable(), TemporaryDirectory(prefix='miniai-prove-') as folder:
        run = partial(_run, task, Path(folder))
        say(f'running {f"{batches} batches" if batches else f"{n_epochs} epoch(s)"} without interruption …')
        whole = run('uninterrupted', _EndCB(batches))
        n = _batches_in(whole['places'])
        if n < (batches or 1):
            raise ValueError(f"{batches} batches were asked for, but {n_epochs} epoch(s) have only {n}")
        kills = _default_kills(whole['places']) if kills is None else _checked(kills, whole['places'], batches)
        resumed = _resumed(run, kills, whole['places'][-1] if batches else None, say)
        found = differences(whole['state'], resumed['state'], leave_out)
        if found: say('not identical; running once more without interruption, to see whether such runs agree …')
        again = run('uninterrupted', _EndCB(batches)) if found else whole
        repeats = not differences(whole['state'], again['state'], leave_out)
    return Proof(list(kills), _compared(whole['state'], leave_out), found, repeats)


def _compared(state: dict[str, Any], leave_out: Collection[str]) -> str:
    "What a state holds, counted."
    there = {k: list(leaves(x, leave_out)) for k, x in state.items()}
    tensors = sum(isinstance(x, Tensor) for xs in there.values() for x in xs)
    values = sum(map(len, there.values())) - tensors
    return (f"{tensors:,} tensors and {values:,} other values in {', '.join(k for k, xs in there.items() if xs)}"
            f"{'; left out: ' if leave_out else ''}{', '.join(leave_out)}")


# Where to kill

def _default_kills(places: list[Place]) -> list[Place]:
    "The middle of the first epoch and of the last; before the last epoch if the run does only one batch of it."
    last = places[-1][0]
    first = [p for p in places if p[0] == 0 and p[1]][:-1]
    later = [p for p in places[:-1] if p[0] == last > 0]
    found = [ps[at] for ps, at in ((first, (len(first) - 1)//2), (later, len(later)//2)) if ps]
    if not found: raise ValueError("a run of one training batch has no place to kill it: ask for two or more")
    return found


def _checked(kills: Sequence[Place], places: list[Place], batches: int | None) -> Sequence[Place]:
    known = places[:-1] if batches else places
    if kills and list(kills) == [p for p in known if p in kills]: return kills
    raise ValueError(f"kills must be places of the run, pairs (epoch, training batches done), in rising order and none "
                     f"after {known[-1]}; got {list(kills)}")


def _batches_in(places: list[Place]) -> int: return sum(1 for _, done in places if done)


# The runs, each in its own process

def _resumed(run: Callable, kills: Sequence[Place], end: Place | None, say: Callable) -> dict[str, Any]:
    "The result of a fit that is killed at each of `kills` and resumed, to `end` or to its own end."
    for i, (epoch, done) in enumerate(kills):
        place = f'after {done} {"batch" if done == 1 else "batches"} of epoch {epoch}' if done else (
            f'before epoch {epoch}')
        say(f'{"resumed, and" if i else "the same run,"} killed {place} …')
        run('resumed' if i else 'first', _EndCB(end=(epoch, done), kill=True), saves=True)
    say('resumed to the end …')
    return run('resumed', _EndCB(end=end), saves=True)


def _run(task: bytes, folder: Path, name: str, ending: '_EndCB', saves: bool = False) -> dict[str, Any]:
    "The result of a fit in its own process, until `ending` ends it; empty if that kills it."
    result, log = folder/'result', folder/'log'
    for p in (result, log): p.unlink(missing_ok=True)  # of the run before
    args = task, ending, result, folder/'checkpoints' if saves else None, log, get_start_method()
    code = _exit_code_of(get_context('spawn').Process(target=_child, args=args))
    if ending.kill and code == -signal.SIGKILL: return {}
    if ending.kill or code or not result.exists(): raise _failure(name, code, result, log)
    return load(result)


def _exit_code_of(process: Any) -> int:
    try:
        with held(): process.start()  # a signal must not come before there is a process to end
        process.join()
        return process.exitcode
    finally:
        if process.pid:
            process.kill()  # after Ctrl-C or SIGTERM it is still running
            process.join()


def _failure(name: str, code: int, result: Path, log: Path) -> ProofError:
    if result.exists():
        report = load(result)
        e = ProofError(f"the {name} run failed: {report.get('error', 'it ended before it could be killed')}")
        e.add_note(report.get('traceback', ''))
        return e
    end = f'was ended by {signal.Signals(-code).name}' if code < 0 else f'exited with code {code}'
    if log.exists():
        lines = [ln for ln in log.read_text(errors='replace').split('\n') if ln.strip()]
        output = '\n'.join(lines[-_SHOWN:]) or 'it printed nothing'
    else: output = ("it did not start; its output is above. A script must call prove_learner under `if __name__ == "
                    "'__main__':`, and make must be defined in a file")
    return ProofError(f"the {name} run {end}: {output}")


# In the process

def _child(task: bytes, ending: '_EndCB', result: Path, checkpoints: Path | None, log: Path, start_method: str) -> None:
    set_start_method(start_method, force=True)  # for the loaders' workers, as in the process of the user
    with log.open('w') as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    if sys.stdout: sys.stdout.reconfigure(errors='backslashreplace')  # a name that it cannot encode is no failure
    try:
        set_seed(0)
        make, fit = pickle.loads(task)
        learn = make()
        if not callable(getattr(learn, 'fit', None)):
            raise TypeError(f"make() must return a Learner, got {type(learn).__name__}")
        if any(isinstance(cb, CheckpointCB) for cb in learn.cbs):
            raise ValueError("make() returns a Learner with a CheckpointCB: leave it out, the proof adds its own")
        saving = [CheckpointCB(checkpoints, batches=1)] if checkpoints else []
        warnings.filterwarnings('error', 'skipped .*checkpoint-')  # it must resume where it was killed, not before
        learn.fit(**fit, cbs=[*saving, ending], resume=bool(saving))
        save(result, dict(state=run_state(learn), places=ending.places))
    except Exception as e:
        save(result, dict(error=f'{type(e).__name__}: {e}', traceback=traceback.format_exc()))
        sys.exit(1)


class _EndCB(Callback):
    "Notes the places of a run, and ends it after `batches` batches or at `end`: kills its process or cancels the fit."
    order, only_shows = CheckpointCB.order, True
    def __init__(self, batches: int | None = None, end: Place | None = None, kill: bool = False) -> None:
        self.batches, self.end, self.kill, self.places = batches, end, kill, []

    def before_epoch(self, learn: Any) -> None:
        if learn.training and not getattr(learn.dl, 'first_batch', 0): self._arrive((learn.epoch, 0))

    def cleanup_batch(self, learn: Any) -> None:
        if not learn.training or learn.ended_by: return
        self._arrive((learn.epoch, learn.iter + 1))
        if self.batches == _batches_in(self.places): raise CancelFitException()

    def _arrive(self, place: Place) -> None:
        self.places.append(place)
        if place != self.end: return
        if self.kill: os.kill(os.getpid(), signal.SIGKILL)
        raise CancelFitException()
