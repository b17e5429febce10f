"Forward hooks that can be removed: one, many, and for the length of a `with`. Knows torch alone."
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ['Hook', 'Hooks']


class Hook:
    "A forward hook on module `m` that calls `f(hook, mod, inp, outp)`; `remove()` takes it off again."
    def __init__(self, m: nn.Module, f: Callable[..., Any]) -> None:
        self.hook = m.register_forward_hook(_as_written(lambda mod, inp, outp: f(self, mod, inp, outp)))

    def remove(self) -> None:
        "Take the hook off its module; a second call does nothing."
        self.hook.remove()


def _as_written(f: Callable) -> Callable:
    "`f`, run as it is in compiled models too: what grows a list, compiled, would be compiled anew at every call."
    return torch.compiler.disable(f) if 'torch._dynamo' in sys.modules else f


class Hooks(list):
    """A `Hook` on each of the modules `ms`. As a context manager it removes them on leaving;
    a deleted item is removed too."""
    def __init__(self, ms: Iterable[nn.Module], f: Callable[..., Any]) -> None:
        super().__init__([Hook(m, f) for m in ms])

    def __enter__(self) -> 'Hooks': return self
    def __exit__(self, *exc: object) -> None: self.remove()

    def __delitem__(self, i: int | slice) -> None:
        for h in self[i] if isinstance(i, slice) else [self[i]]: h.remove()
        super().__delitem__(i)

    def remove(self) -> None:
        "Take every hook off its module; the hooks stay in the list, with what they recorded."
        for h in self: h.remove()
