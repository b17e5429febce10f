"The state of a run as plain data, taken from what the walk finds."
import io
import re
import warnings
from collections.abc import Collection, Iterator
from copy import copy
from itertools import count
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from miniai.distributed.wrap import average_kept, class_of, is_sharded, unwrapped
from miniai.optim.zero import is_zero
from miniai.randomness import describe_states, random_states
from miniai.resume.objects import shape_of, state_of
from miniai.resume.packing import Packer, memory_of
from miniai.resume.slots import HOOKS, attributes_of
from miniai.resume.values import ALL, SOME, brief, is_dense
from miniai.resume.walk import Node, callbacks_of, only_shows, walk
from miniai.resume.workers import has_running_workers, is_fixed

__all__ = ['DATA', 'RunState', 'run_state', 'loaders_of', 'module_tensors', 'common', 'differing', 'said']

DATA = 'learn.dls', 'class ', 'module '  # the paths of data, and of what functions of the data may change
_ESSENTIAL = {'run', 'learn.model', 'learn.loss_func', 'learn.opt'}
# Libraries whose objects change without affecting training
_QUIET = ('tqdm', 'matplotlib', 'logging', 'tensorboard', 'torch.utils.tensorboard', 'wandb', 'mlflow', 'trackio',
          'rich', 'IPython', 'threading', '_thread', 'queue', 'accelerate', 'torch.amp', 'csv', '_csv', 'concurrent',
          'subprocess', 'PIL')
_tick = count()


def loaders_of(learn: Any) -> dict[str, Any]:
    "The training loader and, if there is one, the validation loader, by their paths in the walk."
    return {f'learn.dls.{nm}': dl for nm in ('train', 'valid') if (dl := getattr(learn.dls, nm, None)) is not None}


def run_state(learn: Any) -> dict[str, Any]:
    "The whole state of a run, such as to compare two runs. Its tensors are the run's own, not copies."
    return RunState(learn, everything=True).take(learn)


class RunState:
    """What a run's checkpoints hold. Made when a fit starts: what is the same at a save is a setting, saved as text and
    compared; what differs is state, saved as data and restored. With `everything`, all is state. `names` are the paths
    of the objects that are there at the start, by id."""
    def __init__(self, learn: Any, everything: bool = False) -> None:
        found = _Found(learn, {}, {})
        self.nodes, self.shapes, self.reported = found.nodes, found.shapes(), set()  # objects stay alive, and their ids
        self.passes: dict[str, tuple[dict, dict]] = {}
        self.names = {id(n.object): path for path, n in found.nodes.items()}
        self.at_start = {} if everything else found.texts

    def continue_from(self, state: dict[str, Any]) -> None:
        "What had changed when a checkpoint was saved stays state, whatever it is now."
        settings = state['settings']
        self.at_start = {
            path: {nm: x for nm, x in texts.items() if nm in settings.get(path, ()) or path not in settings}
            for path, texts in self.at_start.items()}

    def begin_pass(self, learn: Any, begun: dict[str, Any] | None = None, kind: str = 'begun') -> None:
        """Note the state of the data as a pass begins: one that ends with its epoch, 'begun', or one that does not,
        'paused'. A checkpoint knows this of a pass that is resumed: `begun`."""
        found = _Found(learn, self.names, self.at_start)
        state, texts = _cloned(found.pass_state()), found.texts
        for path, slots in begun['attributes'].items() if begun else ():
            state['attributes'][path] = state['attributes'].get(path, {}) | slots
            texts[path] = {nm: x for nm, x in texts.get(path, {}).items() if nm not in slots}
        for path, names in begun.get('absent', {}).items() if begun else ():
            for slots in (state['attributes'].get(path, {}), texts.get(path, {})):
                for nm in names: slots.pop(nm, None)
        if begun: state |= {nm: begun[nm] for nm in ('random', 'states', 'running')}
        self.passes[kind] = state, texts

    def data(self, learn: Any, begun: dict[str, Any]) -> dict[str, Any]:
        "The state of the data now, with whatever may have changed since a pass began as in `begun`."
        return _cloned(_Found(learn, self.names, self.at_start).pass_state(begun['attributes']))

    def take(self, learn: Any, within: Collection[str] = ()) -> dict[str, Any]:
        """The state of the run now, with that of the data when the passes began that are not over, by the kinds
        `within`. A warning names what has changed and cannot be in a checkpoint."""
        # What AccumulateCB waits with is in no p.grad of FSDP2. DDP's gradients stay: each process saves its own.
        if getattr(learn, 'hold_step', False) and is_sharded(learn.model): average_kept(learn.model)
        found, moved = _Found(learn, self.names, self.at_start), {}
        begun = dict.fromkeys(('begun', 'paused')) | {kind: self._begun(kind, found, moved) for kind in within}
        attributes = found.attributes(found.nodes, moved)
        objects = {path: state_of(n) for path, n in found.nodes.items() if n.kind in ('module', 'optimizer')}
        settings = {path: {nm: text for nm, (text, told) in texts.items() if found.is_same(path, nm)}
                    for path, texts in found.texts.items()}
        self._report(found)
        roots = found.names[id(unwrapped(learn.model))], found.names[id(learn.opt)]
        model, opt = objects[roots[0]].pop('state'), objects.pop(roots[1])
        return dict(model=model, opt=opt, roots=roots, history=learn.history, objects=objects, **begun,
                    attributes=attributes, settings={path: s for path, s in settings.items() if s},
                    states=found.states(found.nodes), shapes=found.shapes(), random=random_states(),
                    running=found.running())

    def _begun(self, kind: str, found: '_Found', moved: dict[str, set[str]]) -> dict[str, Any]:
        """The state when a pass began, with the attributes that have changed since and the names of those that were
        absent. Changed ones are added to `moved`."""
        state, texts = self.passes[kind]
        changed = {path: {nm: x for nm, x in slots.items() if texts[path].get(nm) != found.texts.get(path, {}).get(nm)}
                   for path, slots in state['attributes'].items()}
        for path, slots in changed.items(): moved[path] = moved.get(path, set()) | slots.keys()
        # An attribute may appear in a pass, such as a counter whose first value is its class's.
        absent = {path: [nm for nm in n.slots if nm not in {**texts[path], **state['attributes'].get(path, {})}]
                  for path, n in found.nodes.items() if path.startswith('learn.dls') and path in texts}
        return state | dict(attributes={path: slots for path, slots in changed.items() if slots},
                            absent={path: names for path, names in absent.items() if names})

    def change(self, state: dict[str, Any]) -> str:
        "What is different about the run since the fit began, so that no fit could resume from `state`; '' if nothing."
        return next((said(*d, ' at the start') for d in differing(*common(self.shapes, state['shapes']))), '')

    def _report(self, found: '_Found') -> None:
        lost = dict(found.packer.lost)
        for path, texts in found.texts.items():
            before = self.at_start.get(path, {})
            for nm in ('class', 'content', 'callbacks', HOOKS) if before else ():
                if texts.get(nm) != before.get(nm): lost[path if nm != HOOKS else f'{path}.{HOOKS}'] = (
                    f"{before[nm][0]}; now {texts[nm][0]}" if nm == 'callbacks' else texts['class'][0])
        held = {path for path, n in found.nodes.items() if n.kind in ('module', 'part', 'optimizer')}
        lost = {path: kind for path, kind in lost.items() if path not in held | self.reported}
        self.reported |= lost.keys()
        names = ', '.join(f'{path} ({kind[:200]})' for path, kind in lost.items())
        if lost: warnings.warn(
            f"CheckpointCB: these have changed since the fit began, and checkpoints cannot hold them: {names}. If "
            f"training depends on them, set them again in before_fit when a run resumes, or give their owner "
            f"state_dict and load_state_dict", stacklevel=2)


class _Found:
    """What one walk found, as text and as data. `texts` are the settings of each node: its slots, its class, and
    others; each with how much of it was read. `at_start` are those of the start of the fit."""
    def __init__(self, learn: Any, names: dict[int, str], at_start: dict[str, dict]) -> None:
        self.learn, self.nodes, self.at_start = learn, walk(learn, names), at_start
        tensors = module_tensors(self.nodes)
        self.names = {id(x): path for path, x in tensors.items()}
        self.names |= {id(n.object): path for path, n in self.nodes.items()}
        self.packer = Packer(self.names, memory_of(tensors))
        self.texts = {path: self._texts_of(n) for path, n in self.nodes.items()}
        self.texts['run'] = dict(callbacks=(self._callbacks(''), ALL))

    def _texts_of(self, node: Node) -> dict[str, tuple[str, int]]:
        x, extra = node.object, {}
        if only_shows(x): return {}
        if type(x) is not dict and not isinstance(x, type): extra['class'] = _described(x), ALL
        if node.kind == 'module':
            params = dict(x.named_parameters())
            extra['frozen'] = repr([nm for nm, p in params.items() if not p.requires_grad]), ALL
            if not params: extra |= {nm: brief(b.clone(), self._name) for nm, b in x.named_buffers()}
        if node.kind == 'optimizer' and not (x is self.learn.opt and self.learn.opt_func is None):
            # without an opt_func the optimizer stays, and an earlier fit may have changed its hyperparameters
            extra |= {f'group {i}.{k}': brief(v, self._name) for i, g in enumerate(x.param_groups)
                      for k, v in g.items() if k != 'params'}
        if isinstance(x, DataLoader) and not is_fixed(x): extra['num_workers'] = str(x.num_workers), ALL
        if node.kind == 'opaque' and (content := _content(x, self._name)): extra['content'] = content
        return extra | {nm: self._brief(f'{node.path}.{nm}', v) for nm, v in node.slots.items()}

    def _brief(self, path: str, x: Any) -> tuple[str, int]:
        text, told = brief(x, self._name)
        return text.replace(f' at {path}', ''), told

    def _name(self, x: Any) -> str | None:
        "A tensor of a module by where it lies, an object by its class and path, a function or class by its name."
        if isinstance(x, Tensor):
            view = self.packer.view_of(x) if is_dense(x) and x.numel() else None
            return self.names.get(id(x)) or (f'a view of {view}' if view else None)
        path = self.names.get(id(x))
        return f'{_described(x)} at {path}' if path and not isinstance(x, type) else _described(x)

    def is_same(self, path: str, nm: str) -> bool:
        "Is this slot a setting: as it was at the start, as far as its text tells?"
        text = self.texts[path].get(nm)
        data = path in self.nodes and self.nodes[path].data
        return text is not None and self.at_start.get(path, {}).get(nm) == text and text[1] >= (SOME if data else ALL)

    def attributes(self, nodes: dict[str, Node], moved: dict[str, set[str]]) -> dict[str, dict]:
        "The slots of `nodes` that have changed since the start or are in `moved`, packed, by path."
        def packed(path: str, n: Node) -> dict[str, Any]:
            return {nm: self._pack(path, nm, x) for nm, x in n.slots.items()
                    if nm != HOOKS and (n.keeps is None or nm in n.keeps)
                    and (not self.is_same(path, nm) or nm in moved.get(path, ()))}
        found = {path: packed(path, n) for path, n in nodes.items()}
        return {path: slots for path, slots in found.items() if slots}

    def _pack(self, path: str, nm: str, x: Any) -> Any:
        packed, lost = self.packer.pack(x, f'{path}.{nm}'), self.packer.lost
        if self.at_start.get(path, {}).get(nm) == self.texts[path][nm]:  # it may be the same: not all of it was read
            for p in [p for p in lost if p.startswith(f'{path}.{nm}')]: del lost[p]
        return packed

    def pass_state(self, also: dict[str, dict] | None = None) -> dict[str, Any]:
        """What a pass over the data may change: random states, generators, and what is small, has changed before or is
        among `also`, by path and name."""
        nodes = {path: n for path, n in self.nodes.items() if path.startswith(DATA)}
        small = {path: {nm for nm in n.slots if self.texts[path][nm][1] == ALL or 'sampler' in path}
                 for path, n in nodes.items()}
        for path, slots in (also or {}).items(): small[path] = small.get(path, set()) | slots.keys()
        return dict(attributes=self.attributes(nodes, small), random=random_states(), running=self.running(),
                    states=self.states(nodes))

    def states(self, nodes: dict[str, Node]) -> dict[str, Any]:
        "The states of all generators, and of the objects with a state_dict among `nodes`."
        states = {path: state_of(n) for path, n in self.nodes.items() if n.kind == 'generator'}
        return states | {path: self.packer.pack(state_of(n), path) for path, n in nodes.items() if n.kind == 'stateful'}

    def running(self) -> list[str]:
        "The paths of the loaders whose persistent workers run."
        return [path for path, dl in loaders_of(self.learn).items() if has_running_workers(dl)]

    def shapes(self) -> dict[str, dict[str, str]]:
        "What no checkpoint can change about a run."
        found = {path: shape_of(n, self.names) for path, n in self.nodes.items()}
        found['run'] = {'validation': str(self.learn.validates), "callbacks of miniai": self._callbacks('miniai.'),
                        **{nm: str(x) for nm, x in describe_states(random_states()).items()}}
        return {path: s for path, s in found.items() if s}

    def _callbacks(self, origin: str) -> str:
        in_order = sorted(callbacks_of(self.learn), key=lambda item: getattr(item[1], 'order', 0))
        return ', '.join(nm for nm, cb in in_order if type(cb).__module__.startswith(origin) and not only_shows(cb))


def _described(x: Any) -> str:
    "An object by its class, a function or class by its name."
    if isinstance(x, MethodType): x = x.__func__
    if is_zero(x): x = x.optim
    named = x if isinstance(x, type | FunctionType | BuiltinFunctionType) else class_of(x)
    return named.__qualname__.rpartition('<locals>.')[2].removeprefix('_VariableFunctionsClass.')


def _content(x: Any, name: Any) -> tuple[str, int] | None:
    "What an object that is not entered holds, as text, as far as that can be seen; None if it does not matter."
    kind = type(x)
    if kind.__module__.startswith(_QUIET): return None
    if isinstance(x, GeneratorType):
        return f'at {x.gi_frame and (x.gi_frame.f_lasti, repr(x.gi_frame.f_locals)[:1000])}', ALL
    if isinstance(x, io.IOBase):  # a file that is only written to is a log
        reads = not x.closed and x.readable() and not x.writable() and x.seekable()
        return (f'at {x.tell()}', ALL) if reads else None
    if hasattr(kind, 'cache_info'): return f'{x.cache_info().currsize} results', ALL
    if hasattr(kind, '__length_hint__'): return f'{x.__length_hint__()} items left', ALL
    text = object.__repr__(x) if kind.__repr__ is object.__repr__ else repr(x)
    if ' at 0x' not in text: return brief(text, name)
    if hasattr(kind, '__next__'): return f'unknown position {next(_tick)}', ALL  # never the same: it cannot be seen
    own = attributes_of(x)
    return brief(dict(own), name) if own else None


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


def said(name: str, then: Any, now: Any, where: str = ' in the checkpoint') -> str:
    "How a setting differs, in words: without the digests that stand for code and for long values."
    then, now = (re.sub(' #[0-9a-f]{8}', '', str(x)) for x in (then, now))
    owner, _, attribute = name.removeprefix('run.').rpartition('.')
    if attribute == '__code__': return f'the code of {owner} ({now[1:-1]}) has changed'
    name = owner if attribute == 'class' else name.removeprefix('run.')
    return f'{name} was {then}{where} and is {now} now' if then != now else f'{name} has changed ({now})'
