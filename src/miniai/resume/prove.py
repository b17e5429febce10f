"""Proof that runs of a Learner can be resumed: one is killed and gone on with, one is not, and all that they have is
compared to the bit. Knows Learners, checkpoints and processes, not what is trained."""
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
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

Place = tuple[int, int]  # an epoch, counted from 0, and how many of its training batches are done
_SHOWN = 5


class ProofError(RuntimeError):
    """A run of a proof failed by itself, so that nothing is proved. The message has its own last words, and a note its
    traceback."""


@dataclass(frozen=True)
class Proof:
    """What a proof found: where it killed (epochs counted from 0, training batches done in them), what it compared, and
    what differed, by name. As text it says all that."""
    kills: list[Place]
    compared: str
    differs: dict[str, str]
    suspects: dict[str, str] = field(default_factory=dict)
    "Attributes that no checkpoint keeps, of callbacks without a `state_dict` and of modules, and that differed."
    repeats: bool = True
    "Whether two runs left alone were the same; looked at where the one gone on with was not."

    @property
    def same(self) -> bool:
        "Was everything the same to the bit?"
        return not self.differs

    def __str__(self) -> str:
        if self.same: return f'the same to the bit: {self.compared}'
        found = f'NOT the same, left alone and gone on with: {_listed(self.differs)}\ncompared were {self.compared}'
        if not self.repeats: return (f"{found}\ntwo runs left alone differ as well, so that none can be gone on with "
                                     f"exactly: something is drawn without a seed, or computed in no fixed order")
        kept = f'\nnot the same either, and kept by no checkpoint: {_listed(self.suspects)}' if self.suspects else ''
        return f'{found}{kept}'


def _listed(differs: dict[str, str]) -> str:
    shown = '; '.join(f'{nm} ({said})' for nm, said in list(differs.items())[:_SHOWN])
    return shown + (f'; and {len(differs) - _SHOWN:,} more' if len(differs) > _SHOWN else '')


def prove_learner(make: Callable[[], Any], n_epochs: int = 2, batches: int | None = None,
                  kills: Sequence[Place] | None = None, leave_out: Collection[str] = ('seconds',),
                  say: Callable[[str], Any] = print, lr: float | None = None, valid: bool = True) -> Proof:
    """Prove, or disprove, that runs of the Learner that `make()` gives can be resumed exactly:

        def make():                                          # in a module or a script, by a name of its own
            return TrainLearner(net(), loaders(workers=2), F.cross_entropy, 1e-3, [MetricsCB(), sched()], AdamW)

        if __name__ == '__main__':
            proof = prove_learner(make, n_epochs=2)
            assert proof.same, proof

    `learn.fit(n_epochs, lr=lr, valid=valid)` runs to its end, or for so many training `batches`, in a process of its
    own; then again with a CheckpointCB, killed at each of `kills`, pairs (epoch counted from 0, training batches done
    in it), and each time gone on with in a fresh process; by default in the middle of the first epoch and of the last,
    or between epochs where one batch of the last is all that is asked for. Everything that `run_state` gives is then
    compared: model, optimizer, schedules, history, records of callbacks, random states; but not what stands there by a
    name in `leave_out`, as times do. `make` sets all that a run depends on, threads and flags of torch too, and adds no
    CheckpointCB; it is called with everything seeded. `say` hears what is being done.

    TypeError for a `make` that no fresh process can import, ValueError for counts that are no whole numbers above 0 and
    for a run too short to be killed as asked, ProofError for one that fails by itself, or that refuses to be gone on
    with. Ctrl-C and SIGTERM, which raises SystemExit(143), leave neither processes nor files."""
    _check_counts(n_epochs=n_epochs, batches=1 if batches is None else batches)
    task = _pickled(make)
    with terminable(), TemporaryDirectory(prefix='miniai-prove-') as folder:
        runs = _Runs(task, dict(n_epochs=n_epochs, lr=lr, valid=valid), batches, Path(folder), say)
        say(f'a run of {f"{batches} batches" if batches else f"{n_epochs} epoch(s)"}, left alone …')
        whole = runs.alone()
        kills = _kills_among(whole['places']) if kills is None else _checked(kills, whole['places'], batches)
        rest = runs.resumed(kills, whole['places'][-1])
        found = differences(whole['state'], rest['state'], leave_out)
        if found: say('not the same; one more left alone, to see whether two of these are …')
        repeats = not found or not differences(whole['state'], runs.alone()['state'], leave_out)
    return Proof(list(kills), _compared(whole['state'], leave_out), found,
                 differences(whole['unkept'], rest['unkept']) if found else {}, repeats)


def _check_counts(**counts: Any) -> None:
    for nm, n in counts.items():
        if isinstance(n, bool) or not isinstance(n, SupportsIndex) or n < 1:
            raise ValueError(f"{nm} must be a whole number above 0, got {n!r}")


def _pickled(make: Callable[[], Any]) -> bytes:
    try: return pickle.dumps(make)
    except Exception as e:
        raise TypeError(f"fresh processes must be able to import make: give a function that stands in a module by a "
                        f"name of its own, or a functools.partial of one ({e})") from e


def _compared(state: dict[str, Any], leave_out: Collection[str]) -> str:
    "What a state has, counted."
    there = {k: list(leaves(x, leave_out)) for k, x in state.items()}
    tensors = sum(isinstance(x, Tensor) for xs in there.values() for x in xs)
    values = sum(map(len, there.values())) - tensors
    return (f"{tensors:,} tensors and {values:,} other values, of {', '.join(k for k, xs in there.items() if xs)}"
            f"{'; left out: ' if leave_out else ''}{', '.join(leave_out)}")


# Where to kill

def _kills_among(places: list[Place]) -> list[Place]:
    "The middle of the first epoch, and of the last; between two epochs where the last has but one batch."
    last = places[-1][0]
    first = [p for p in places if p[0] == 0 and p[1]][:-1]
    later = [p for p in places[:-1] if p[0] == last > 0]
    found = [ps[at] for ps, at in ((first, (len(first) - 1)//2), (later, len(later)//2)) if ps]
    if not found: raise ValueError("a run of one training batch has no place to be killed at: ask for two or more")
    return found


def _checked(kills: Sequence[Place], places: list[Place], batches: int | None) -> Sequence[Place]:
    known = places[:-1] if batches else places
    if kills and list(kills) == [p for p in known if p in kills]: return kills
    raise ValueError(f"kills must be places of the run, pairs (epoch, training batches done), in rising order and none "
                     f"after {known[-1]}; got {list(kills)}")


def _batches_in(places: list[Place]) -> int: return sum(1 for _, done in places if done)


def _said(place: Place) -> str:
    epoch, done = place
    return f'after {done} {"batch" if done == 1 else "batches"} of epoch {epoch}' if done else f'before epoch {epoch}'


# The runs, each in a process of its own

@dataclass(frozen=True)
class _Part:
    "A run, or a part of one: where it saves and goes on from, where it ends and how, and where its result goes."
    fit: dict[str, Any]
    result: Path
    saves: Path | None = None
    batches: int | None = None
    end: Place | None = None
    kill: bool = False


class _Runs:
    "Runs of one Learner, in processes of their own, and what they leave."
    def __init__(self, task: bytes, fit: dict, batches: int | None, folder: Path, say: Callable) -> None:
        self.task, self.fit, self.batches, self.folder, self.say = task, fit, batches, folder, say

    def alone(self) -> dict[str, Any]:
        "What is left of a run that nobody disturbs."
        result = self._run('left alone', _Part(self.fit, self.folder/'alone', batches=self.batches))
        there = _batches_in(result['places'])
        if there >= (self.batches or 1): return result
        raise ValueError(f"{self.fit['n_epochs']} epoch(s) have {there} batches, and {self.batches} were asked for")

    def resumed(self, kills: Sequence[Place], last: Place) -> dict[str, Any]:
        "What is left of the same run, killed and gone on with."
        for i, kill in enumerate(kills):
            self.say(f'{"gone on with, and" if i else "the same,"} killed {_said(kill)} …')
            self._run('gone on with' if i else 'that is killed', self._saving(kill, True), -signal.SIGKILL)
        self.say('gone on with to its end …')
        return self._run('gone on with', self._saving(last if self.batches else None))

    def _saving(self, end: Place | None, kill: bool = False) -> _Part:
        return _Part(self.fit, self.folder/'resumed', self.folder/'checkpoints', end=end, kill=kill)

    def _run(self, what: str, part: _Part, wanted: int = 0) -> Any:
        log = self.folder/'log'
        for p in (part.result, log): p.unlink(missing_ok=True)  # of the run before
        given = self.task, part, log, get_start_method()
        code = _exit_code_of(get_context('spawn').Process(target=_child, args=given))
        if code != wanted or not (wanted or part.result.exists()): raise _failure(what, code, part.result, log)
        return None if wanted else load(part.result)


def _exit_code_of(process: Any) -> int:
    try:
        with held(): process.start()  # amid it nobody could end the process yet
        process.join()
        return process.exitcode
    finally:
        if process.pid: _end(process)


def _end(process: Any) -> None:
    process.kill()  # it still runs after Ctrl-C or SIGTERM
    process.join()


def _failure(what: str, code: int, result: Path, log: Path) -> ProofError:
    if result.exists():
        said = load(result)
        e = ProofError(f"the run {what} failed: {said.get('error', 'it came to its end')}")
        e.add_note(said.get('traceback', ''))
        return e
    words = _last_words(log) if log.exists() else _UNHEARD
    return ProofError(f"the run {what} ended by {_ending(code)}: {words}")


def _last_words(log: Path) -> str:
    lines = [ln for ln in log.read_text(errors='replace').split('\n') if ln.strip()]
    return '\n'.join(lines[-_SHOWN:]) or 'it said nothing'


_UNHEARD = ("it never began; what it said is above. A script that calls prove_learner does so beneath "
            "if __name__ == '__main__', and make stands in a file")


def _ending(code: int) -> str: return f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'


# In the process

def _child(task: bytes, part: _Part, log: Path, start_method: str) -> None:
    set_start_method(start_method, force=True)  # of loaders' workers: theirs would be this process's own
    with log.open('w') as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    if sys.stdout: sys.stdout.reconfigure(errors='backslashreplace')  # a name it cannot take is no failure of the run
    try:
        set_seed(0)  # which make may do anew
        _fit(_learner_of(pickle.loads(task)), part)
    except Exception as e:
        save(part.result, dict(error=f'{type(e).__name__}: {e}', traceback=traceback.format_exc()))
        sys.exit(1)


def _learner_of(make: Callable[[], Any]) -> Any:
    learn = make()
    if not callable(getattr(learn, 'fit', None)):
        raise TypeError(f"make() must give a Learner, and gave {type(learn).__name__}")
    if not any(isinstance(cb, CheckpointCB) for cb in learn.cbs): return learn
    raise ValueError("make() gives a Learner with a CheckpointCB: leave it out, the proof adds its own")


def _fit(learn: Any, part: _Part) -> None:
    ends = _EndCB(part.batches, part.end, part.kill)
    saving = [CheckpointCB(part.saves, batches=1)] if part.saves else []
    warnings.filterwarnings('error', 'passed over|skipped')  # where it was killed it is to go on, not somewhere before
    learn.fit(**part.fit, cbs=[*saving, ends], resume=bool(part.saves))
    save(part.result, dict(state=run_state(learn), places=ends.places, unkept=_unkept(learn)))


class _EndCB(Callback):
    "Notes the places of a run, and ends it after so many batches or at a place: kills its process, or cancels the fit."
    order = CheckpointCB.order
    def __init__(self, batches: int | None, end: Place | None, kill: bool) -> None:
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


def _unkept(learn: Any) -> dict[str, Any]:
    "Plain attributes that nothing saves: those of modules, and of callbacks without a `state_dict`, ours aside."
    kinds = [type(cb) for cb in learn.cbs]
    named = {f'{kind.__name__} {kinds[:i + 1].count(kind)}': learn.cbs[i] for i, kind in enumerate(kinds)
             if not kind.__module__.startswith('miniai.') and not callable(getattr(kind, 'state_dict', None))}
    named |= {f'module {nm}'.strip(): m for nm, m in learn.model.named_modules()}
    return {nm: {k: x for k, x in getattr(o, '__dict__', {}).items() if type(x) in (bool, int, float, str)}
            for nm, o in named.items()}
