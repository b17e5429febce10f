"The state of a run as plain data, taken from what the walk finds."
import warnings
from collections.abc import Iterator
from copy import copy
from types import MethodType
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from miniai.randomness import describe_states, random_states
from miniai.resume.objects import shape_of, state_of
from miniai.resume.values import ALL, SOME, Packer, brief, memory_of
from miniai.resume.walk import Node, callbacks_of, only_shows, walk
from miniai.resume.workers import has_running_workers, is_fixed

__all__ = ['DATA', 'RunState', 'run_state', 'loaders_of', 'module_tensors', 'common', 'differing']

DATA = 'learn.dls', 'class ', 'module '  # the paths of data, and of what functions of the data may change
_ESSENTIAL = {'run', 'learn.model', 'learn.loss_func', 'learn.opt'}
# Libraries whose objects change without affecting training
_QUIET = ('tqdm', 'matplotlib', 'logging', 'tensorboard', 'wandb', 'mlflow', 'trackio', 'rich', 'IPython', 'threading',
          'accelerate', 'torch.amp', 'io', '_io', 'csv', 'concurrent', 'subprocess', 'PIL', 'weakref')


def loaders_of(learn: Any) -> dict[str, Any]:
    "The training loader and, if there is one, the validation loader, by their paths in the walk."
    return {f'learn.dls.{nm}': dl for nm in ('train', 'valid') if (dl := getattr(learn.dls, nm, None)) is not None}


def run_state(learn: Any) -> dict[str, Any]:
    "The whole state of a run, such as to compare two runs. Its tensors are the run's own, not copies."
    return RunState(learn, everything=True).take(learn)


class RunState:
    """What a run's checkpoints hold. Made when a fit starts: what is the same at a save is a setting, saved as text and
    compared; what differs is state, saved as data and restored. With `everything`, all is state."""
    def __init__(self, learn: Any, everything: bool = False) -> None:
        found = _Found(learn)
        self.shapes, self.marks, self.reported = found.shapes(), found.marks(), set()
        self.first = {} if everything else found.texts

    def begin_pass(self, learn: Any, begun: dict[str, Any] | None = None) -> None:
        "Note the state of the data as a pass begins. A checkpoint knows this of a pass that is resumed: `begun`."
        found = _Found(learn)
        self.begun, self.texts = _cloned(found.data(self.first, begins=True)), found.texts
        for path, slots in begun['attributes'].items() if begun else ():
            self.begun['attributes'][path] = self.begun['attributes'].get(path, {}) | slots
            self.texts[path] = {nm: x for nm, x in self.texts.get(path, {}).items() if nm not in slots}
        if begun: self.begun |= {nm: begun[nm] for nm in ('random', 'states', 'running')}

    def take(self, learn: Any, within_pass: bool = False) -> dict[str, Any]:
        """The state of the run now, with `begun`, that of the data when the pass began, if it is within one. A warning
        names what has changed and cannot be in a checkpoint."""
        found, begun, moved = _Found(learn), None, {}
        if within_pass:
            moved = {path: {nm for nm in slots if self.texts[path].get(nm) != found.texts.get(path, {}).get(nm)}
                     for path, slots in self.begun['attributes'].items()}
            begun = self.begun | dict(attributes={path: {nm: slots[nm] for nm in slots if nm in moved[path]}
                                                  for path, slots in self.begun['attributes'].items() if moved[path]})
        data = found.data(self.first, moved)
        objects = {path: state_of(n) for path, n in found.nodes.items() if n.kind in ('module', 'optimizer')}
        settings = {path: {nm: text for nm, (text, _) in texts.items() if nm in found.same[path]}
                    for path, texts in found.texts.items()}
        self._report(found)
        model, opt = objects['learn.model'].pop('state'), objects.pop('learn.opt')
        return dict(model=model, opt=opt, history=learn.history, objects=objects, settings=settings, begun=begun,
                    shapes=found.shapes()) | data

    def change(self, state: dict[str, Any]) -> str:
        "What is different about the run since the fit began, so that no fit could resume from `state`; '' if nothing."
        return next((f'{k} was {a} at the start and is {b} now'
                     for k, a, b in differing(*common(self.shapes, state['shapes']))), '')

    def _report(self, found: '_Found') -> None:
        marks = found.marks()
        lost = found.packer.lost | {path: type(found.nodes[path].object).__name__ for path, x in marks.items()
                                    if x != self.marks.setdefault(path, x)}
        for path, node in found.nodes.items():  # an object of another class took the place of one
            now, before = (x.get(path, {}).get('class') for x in (found.texts, self.first))
            if node.kind == 'plain' and before and now != before: lost[path] = now[0]
        new = {path: kind for path, kind in lost.items() if path not in self.reported}
        self.reported |= new.keys()
        if new: warnings.warn(
            f"CheckpointCB: checkpoints cannot hold {', '.join(f'{path} ({kind})' for path, kind in new.items())}, "
            f"which has changed since the fit began. If training depends on it, give its owner state_dict and "
            f"load_state_dict", stacklevel=2)


class _Found:
    """What one walk found, as text and as data. `texts` are the settings of each node: its slots, its class, and
    others; each with how much its text tells."""
    def __init__(self, learn: Any) -> None:
        self.learn, self.nodes = learn, walk(learn)
        tensors = module_tensors(self.nodes)
        self.memory = {memory_of(x): path for path, x in tensors.items()}
        self.names = {id(x): path for path, x in tensors.items()}
        self.packer = Packer(self.names | {id(n.object): path for path, n in self.nodes.items()}, self.memory)
        self.texts = {path: self._texts_of(n) for path, n in self.nodes.items()}
        self.texts['run'] = dict(callbacks=(self._callbacks(''), ALL))

    def _texts_of(self, node: Node) -> dict[str, tuple[str, int]]:
        x, extra = node.object, {}
        if only_shows(x): return {}
        if not isinstance(x, dict | type): extra['class'] = self._name(x), ALL
        if node.kind == 'module':
            params = dict(x.named_parameters())
            extra['frozen'] = repr([nm for nm, p in params.items() if not p.requires_grad]), ALL
            if not params: extra |= {nm: brief(b.clone(), self._name) for nm, b in x.named_buffers()}
        if node.kind == 'optimizer' and not (x is self.learn.opt and self.learn.opt_func is None):
            # without an opt_func the optimizer stays, and an earlier fit may have changed its hyperparameters
            extra |= {f'group {i}.{k}': brief(v, self._name) for i, g in enumerate(x.param_groups)
                      for k, v in g.items() if k != 'params'}
        if isinstance(x, DataLoader) and not is_fixed(x): extra['num_workers'] = str(x.num_workers), ALL
        if node.kind == 'opaque' and node.data and hasattr(x, '__len__'): extra['length'] = str(len(x)), ALL
        return extra | {nm: brief(v, self._name) for nm, v in node.slots.items()}

    def _name(self, x: Any) -> str | None:
        "A tensor of a module by its path, an object by its class, a function or class by its name."
        if isinstance(x, Tensor): return self.memory.get(memory_of(x))
        if isinstance(x, MethodType): x = x.__func__
        named = x if hasattr(x, '__qualname__') else type(x)
        return named.__qualname__.rpartition('<locals>.')[2]

    def data(self, first: dict, moved: dict[str, set[str]] | None = None, begins: bool = False) -> dict[str, Any]:
        """The slots that differ from `first` or are in `moved`, the states of small objects, and the random states. As
        a pass `begins`: only of the data, with everything small, because the pass may change it."""
        self.first = first
        self.same = {path: {nm for nm, told in texts.items() if first.get(path, {}).get(nm) == told}
                     for path, texts in self.texts.items()}
        for path, n in self.nodes.items():
            self.same[path] -= {nm for nm in self.same[path] if self.texts[path][nm][1] < (SOME if n.data else ALL)}
        nodes = {path: n for path, n in self.nodes.items() if not begins or path.startswith(DATA)}
        def wanted(path: str, nm: str) -> bool:
            small = self.texts[path][nm][1] == ALL or '.sampler' in path or '.batch_sampler' in path
            return nm not in self.same[path] or nm in (moved or {}).get(path, ()) or (begins and small)
        slots = {path: {nm: self._packed(path, nm, x) for nm, x in n.slots.items() if wanted(path, nm)}
                 for path, n in nodes.items() if n.keeps}
        states = {path: state_of(n) for path, n in self.nodes.items() if n.kind == 'generator'}
        states |= {path: self.packer.pack(state_of(n), path) for path, n in nodes.items() if n.kind == 'stateful'}
        running = [path for path, dl in loaders_of(self.learn).items() if has_running_workers(dl)]
        return dict(attributes={path: s for path, s in slots.items() if s}, states=states, random=random_states(),
                    running=running)

    def _packed(self, path: str, nm: str, x: Any) -> Any:
        packed, lost = self.packer.pack(x, f'{path}.{nm}'), self.packer.lost
        if self.first.get(path, {}).get(nm) == self.texts[path][nm]:  # it may be the same: its text does not tell all
            for p in [p for p in lost if p.startswith(f'{path}.{nm}')]: del lost[p]
        return packed

    def shapes(self) -> dict[str, dict[str, str]]:
        "What no checkpoint can change about a run."
        found = {path: shape_of(n, self.names) for path, n in self.nodes.items()}
        found['run'] = {'validation': str(self.learn.validates), "callbacks of miniai": self._callbacks('miniai.'),
                        **{nm: str(x) for nm, x in describe_states(random_states()).items()}}
        return {path: s for path, s in found.items() if s}

    def _callbacks(self, origin: str) -> str:
        in_order = sorted(callbacks_of(self.learn), key=lambda item: getattr(item[1], 'order', 0))
        return ', '.join(nm for nm, cb in in_order if type(cb).__module__.startswith(origin) and not only_shows(cb))

    def marks(self) -> dict[str, Any]:
        return {path: _mark(n.object) for path, n in self.nodes.items()
                if n.kind == 'opaque' and not type(n.object).__module__.startswith(_QUIET)}


def _mark(x: Any) -> Any:
    "Tells whether an object that is not entered has changed: where a generator stands, plain attributes."
    frame = getattr(x, 'gi_frame', None)
    if frame is not None: return frame.f_lasti, repr(frame.f_locals)[:1000]
    if hasattr(x, 'cache_info'): return x.cache_info().currsize
    if hasattr(x, '__length_hint__'): return x.__length_hint__()
    if hasattr(x, '__next__'): return object() if ' at 0x' in repr(x) else repr(x)  # never equal: it cannot be seen
    return {k: v for k, v in getattr(x, '__dict__', {}).items() if isinstance(v, bool | int | float | str)}


def module_tensors(nodes: dict[str, Node]) -> dict[str, Tensor]:
    "The tensors of all modules, by path."
    return {f'{path}.{nm}': x for path, n in reversed(nodes.items()) if n.kind == 'module'
            for nm, x in (*n.object.named_parameters(), *n.object.named_buffers())}


def _cloned(x: Any) -> Any:
    if isinstance(x, Tensor | np.ndarray): return copy(x) if isinstance(x, np.ndarray) else x.clone()
    if isinstance(x, dict): return {k: _cloned(v) for k, v in x.items()}
    return type(x)(map(_cloned, x)) if isinstance(x, list | tuple) else x


def common(a: dict[str, dict], b: dict[str, dict]) -> tuple[dict, dict]:
    "Both without the objects that only one has: these are not restored. Every run must have the same essentials."
    paths = (a.keys() & b.keys()) | _ESSENTIAL
    return tuple({path: x for path, x in d.items() if path in paths} for d in (a, b))


def differing(a: dict[str, dict], b: dict[str, dict]) -> Iterator[tuple[str, str, str]]:
    "Path and both values of what differs in two nests of text."
    for path in {**a, **b}:
        x, y = a.get(path, {}), b.get(path, {})
        for nm in {**x, **y}:
            if x.get(nm) != y.get(nm): yield f'{path}.{nm}'.strip('.'), x.get(nm, 'missing'), y.get(nm, 'missing')
