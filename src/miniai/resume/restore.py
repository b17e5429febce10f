"A run compared with a checkpoint, and restored from it."
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import PurePath
from typing import Any

import torch

from miniai.environment import version_of
from miniai.optim.optimizer import inner_optimizer
from miniai.randomness import random_states, set_random_states
from miniai.resume.objects import device_of, misfit, restore_state, state_of
from miniai.resume.packing import Unpacker
from miniai.resume.ranks import is_resized
from miniai.resume.slots import ITEMS, attributes_of
from miniai.resume.state import DATA, RunState, common, differing, loaders_of, module_tensors, said
from miniai.resume.values import is_dense
from miniai.resume.walk import Node, origin_of, walk
from miniai.resume.workers import set_workers

__all__ = ['ResumeError', 'versions', 'check_same', 'restore', 'restore_data', 'real_weights']


class ResumeError(ValueError): "A run cannot resume from a checkpoint; the message says why."


def versions(learn: Any) -> dict[str, Any]:
    "What must be the same about library and machine."
    python = '.'.join(platform.python_version_tuple()[:2])
    return dict(miniai=version_of('miniai-torch'), torch=str(torch.__version__), python=python,
                device=device_of(learn.model), threads=torch.get_num_threads())


# Compared

def check_same(learn: Any, state: dict[str, Any], here: RunState) -> None:
    """ResumeError, with both values, for the first difference between the run of the checkpoint `state` and `learn`,
    whose fit starts, that changes the result. A warning for those that may change it."""
    now = versions(learn)
    changed = [(nm, then, now[nm]) for nm, then in state['versions'].items() if then != now[nm]]
    loose = [('the version of miniai', *d[1:]) for d in changed if d[0] == 'miniai']
    strict = [d for d in changed if d[0] not in (('miniai', 'threads') if is_resized(state) else ('miniai',))]
    if state['settings']:  # miniai 0.2 saved none, nor shapes
        strict += differing(*common(state['shapes'], here.shapes))
        if strict: raise _differs(strict[:1])
    for path, nm, then, value in _changed_settings(state, here):
        (strict if _is_strict(here.nodes.get(path), path, nm) else loose).append((f'{path}.{nm}', then, value))
    if strict: raise _differs(_causes(strict)[:3], _hint(strict, state['position']['n_epochs'], learn.n_epochs))
    if loose: warnings.warn("the result may differ from that of the run in the checkpoint: "
                            + '; '.join(said(*s, '') for s in loose), stacklevel=5)
    _check_fits(state, here.nodes)


def _check_fits(state: dict[str, Any], nodes: dict[str, Node]) -> None:
    "ResumeError if the state of an object does not fit it, or random states do not."
    for path, x in _whole(state).items():
        why = misfit(nodes[path], x) if path in nodes else ''
        if why: raise ResumeError(f"cannot resume: {path} in the checkpoint does not fit: {why}")
    before = random_states()
    try: set_random_states(state['random'])
    except Exception as e: raise ResumeError(f"cannot resume: random states in the checkpoint do not fit: {e}") from e
    finally: set_random_states(before)


def _differs(settings: list[tuple[str, Any, Any]], hint: str = '') -> ResumeError:
    return ResumeError('cannot resume: ' + '; '.join(said(*s) for s in settings) + hint)


def _hint(differences: list[tuple], then: int, now: int) -> str:
    "What to do if a schedule differs, which may be because it was made for another number of epochs."
    if then == now or not any('.schedo' in nm for nm, *_ in differences): return ''
    return (f". The fit had {then} epochs and has {now} now: if the schedule depends on that, "
            f"call fit({then}, resume=True)")


def _causes(differences: list[tuple]) -> list[tuple]:
    """The differences that tell most: for an object of another class its class alone, and private attributes only if
    there are no others. Classes come first."""
    others = tuple(nm.removesuffix('.class') for nm, *_ in differences if nm.endswith('.class'))
    found = [d for d in differences if d[0].endswith('.class') or not d[0].startswith(others)]
    return sorted([d for d in found if '._' not in d[0]] or found, key=lambda d: not d[0].endswith('.class'))


def _changed_settings(state: dict[str, Any], here: RunState) -> Iterator[tuple]:
    "Path, name, and both texts of settings that differ."
    for path, settings in state['settings'].items():
        now = here.at_start.get(path)
        if now is None and path.startswith('learn.dls') and 'class' in settings:
            yield path, 'class', settings['class'], 'missing'
        for nm, then in settings.items() if now else ():
            value = now.get(nm, ('missing',))[0]
            if value != then and not (_is_time(then) and _is_time(value)): yield path, nm, then, value
    saved = state['settings'].keys() | state['attributes'].keys()
    for path, node in here.nodes.items():
        if not isinstance(node.object, partial) or path not in saved: continue
        known = {**state['settings'].get(path, {}), **state['attributes'].get(path, {})}
        for nm in node.slots.keys() - known.keys(): yield path, nm, 'missing', here.at_start[path][nm][0]


def _is_time(text: str) -> bool:
    "Is this the text of a time as `time.time()` returns it? It differs from run to run."
    try: return '.' in text and 1e9 < float(text) < 1e10
    except ValueError: return False


def _is_strict(node: Node | None, path: str, name: str) -> bool:
    # The first is restored; the second matters if workers draw; the third is only what can be seen from outside.
    if name in ('frozen', 'num_workers', 'content'): return False
    if node is None or (path.startswith('learn.dls') and name == 'class'): return path != 'run'
    x = node.slots.get(name)
    texts = x if isinstance(x, list | tuple) and x else [x]
    users = path.startswith('learn.dls') or origin_of(type(node.object)) == 'user'
    if users and all(isinstance(y, str | PurePath) for y in texts): return False  # such as a folder
    return node.strict or path.startswith('learn.dls')


# Restored

def _whole(state: dict[str, Any]) -> dict[str, Any]:
    "The states of all objects, by path."
    model, opt = state.get('roots', ('learn.model', 'learn.opt'))
    return state['states'] | state['objects'] | {
        model: state['objects'][model] | dict(state=state.get('raw', state['model'])), opt: state['opt']}


def restore(learn: Any, state: dict[str, Any], names: dict[int, str]) -> list[str]:
    """Restore everything that `state` holds. Returns the paths of what could not be restored. ResumeError, and nothing
    is changed, if an object refuses its state. `names` are those of the RunState."""
    nodes = walk(learn, names)
    with real_weights(learn):
        unpacker = _unpacker(learn, nodes)
        _restore_stateful(nodes, state['states'], unpacker)
        for path, x in _whole(state).items():
            if path not in nodes: unpacker.lost.append(path)
            elif path not in state['states']: restore_state(nodes[path], x)
        learn.history[:] = state['history']
        for path, dl in loaders_of(learn).items(): set_workers(dl, path in (state['begun'] or state)['running'])
        _restore_rest(nodes, state, unpacker)
    lost = dict.fromkeys(unpacker.lost)
    gone = {path for path in state['attributes'].keys() - nodes.keys() if path.startswith(('class ', 'module '))}
    return [path for path in lost if path not in gone and not any(path.startswith(f'{p}.') for p in lost)]


def restore_data(learn: Any, data: dict[str, Any], names: dict[int, str], leave_out: tuple[str, ...] = ()) -> None:
    "Restore random states, generators and the attributes in `data`, but for paths that begin as in `leave_out`."
    everything = walk(learn, names)
    nodes = {path: n for path, n in everything.items() if not (leave_out and path.startswith(leave_out))}
    unpacker = _unpacker(learn, everything)
    _restore_stateful({path: n for path, n in nodes.items() if path.startswith(DATA)}, data['states'], unpacker)
    for path, gone in data.get('absent', {}).items():
        for nm in gone if path in nodes else (): (attributes_of(nodes[path].object) or {}).pop(nm, None)
    _restore_rest(nodes, data, unpacker)


def _restore_rest(nodes: dict[str, Node], state: dict[str, Any], unpacker: Unpacker) -> None:
    for path, slots in state['attributes'].items():
        tensor = unpacker.objects.get(path)  # a parameter that had no attributes of its own yet
        node = nodes.get(path) or (Node(path, tensor, 'plain') if isinstance(tensor, torch.Tensor) else None)
        if node is None: unpacker.lost.append(path)
        for nm, packed in slots.items() if node else ():
            old = node.slots.get(nm)
            new = unpacker.unpack(packed, old, f'{path}.{nm}')
            if new is not old or nm == ITEMS: node.put(nm, new)
    for path, x in state['states'].items():
        if path in nodes and nodes[path].kind == 'generator': restore_state(nodes[path], x)
    set_random_states(state['random'])


def _unpacker(learn: Any, nodes: dict[str, Node]) -> Unpacker:
    tensors = module_tensors(nodes)
    taken = {x.untyped_storage().data_ptr() for x in tensors.values() if is_dense(x)}
    device = next((p.device for p in learn.model.parameters()), 'cpu')
    return Unpacker({path: n.object for path, n in nodes.items()} | tensors, taken, device)


def _restore_stateful(nodes: dict[str, Node], states: dict[str, Any], unpacker: Unpacker) -> None:
    "Objects with a state_dict of their own. If one refuses its state, all keep what they had."
    found = [(path, n) for path, n in nodes.items() if n.kind == 'stateful' and path in states]
    undo: list[tuple[Node, Any]] = []
    for path, node in found:
        undo.append((node, deepcopy(state_of(node))))
        try: restore_state(node, unpacker.unpack(states[path], None, path))
        except Exception as e:
            for other, before in undo: restore_state(other, before)
            why = str(e) if isinstance(e, ValueError) else f'{type(e).__name__}: {e}'
            raise ResumeError(f"cannot resume: {path} refuses its saved state: {why}") from e


@contextmanager
def real_weights(learn: Any) -> Iterator[None]:
    "Within this context the model holds its weights, even if optimizer and callbacks have swapped in their averages."
    swapped = [x for x in (inner_optimizer(learn.opt), *learn.cbs) if getattr(x, 'shows_averages', False)]
    for x in swapped: x.swap_averages()
    try: yield
    finally:
        for x in swapped: x.swap_averages()
