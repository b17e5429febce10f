"Forward hooks that can be removed: one, many, and for the length of a `with`. Knows torch alone."
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

__all__ = ['Hook', 'Hooks']


class Hook:
    "A forward hook on module `m` that calls `f(hook, mod, inp, outp)`; `remove()` takes it off again."
    def __init__(self, m: nn.Module, f: Callable[..., Any]) -> None:
        self.hook = m.register_forward_hook(lambda mod, inp, outp: f(self, mod, inp, outp))

    def remove(self) -> None:
        "Take the hook off its module; a second call does nothing."
        self.hook.remove()


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
