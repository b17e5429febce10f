"A checkpoint read by all processes, with its tensors sharded where the run's are."
from pathlib import Path
from typing import Any

from torch import nn

from miniai.checkpoint import load, read
from miniai.checkpoint.read import load_apart, verify_parts
from miniai.distributed.ranks import failing_together, of_first, rank, world
from miniai.distributed.wrap import is_sharded
from miniai.resume.walk import Node

__all__ = ['load_together', 'placed']


def load_together(path: Path, model: nn.Module) -> dict[str, Any]:
    """The state of a checkpoint, the same in all processes, which must all call this: if it is damaged for one, all
    raise that CheckpointError. If `model` is sharded, sharded tensors are not read yet."""
    if path.suffix or not is_sharded(model): return of_first(lambda: load(path))
    state = of_first(lambda: load_apart(path))
    parts = state.pop('parts')
    with failing_together(): verify_parts(path, parts, rank(), world())
    return state


def placed(state: dict[str, Any], path: Path | None, learn: Any, nodes: dict[str, Node]) -> dict[str, Any]:
    """`state`, which `load_together` gave, with tensors that belong to a sharded parameter sharded like it: weights,
    gradients and others of its name, and the optimizer's state. Reads what is not read yet from the folder `path`."""
    if not is_sharded(learn.model): return state
    params = _Parameters(learn, nodes)
    with failing_together(): return read.placed(path, state, params.of)


class _Parameters:
    "The run's parameters: those of the model by name, and those of its optimizers by number."
    def __init__(self, learn: Any, nodes: dict[str, Node]) -> None:
        self.named = dict(learn.model.named_parameters(remove_duplicate=False))
        opts = {('objects', path): n.object for path, n in nodes.items() if n.kind == 'optimizer'}
        self.numbered = {(*where, 'state', i): p for where, opt in {('opt',): learn.opt, **opts}.items()
                         for i, p in enumerate(p for g in opt.param_groups for p in g['params'])}

    def of(self, keys: tuple) -> Any:
        "The parameter that what a state has under `keys` belongs to; None if there is none."
        return self.numbered.get(keys[:-1]) if keys[:-1] in self.numbered else self.named.get(keys[-1])
