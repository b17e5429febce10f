"Forward hooks on modules: one, a list of them, and their removal at the end of a `with` block."
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ['Hook', 'Hooks', 'hookable']


class Hook:
    "A forward hook on module `m` that calls `f(hook, mod, inp, outp)`. If `f` returns a value, it replaces the output."
    def __init__(self, m: nn.Module, f: Callable[..., Any]) -> None:
        def call(mod: nn.Module, inp: Any, outp: Any) -> Any: return f(self, mod, inp, outp)
        # A compiled model would recompile whenever a hook appends to a list, so hooks run uncompiled.
        if 'torch._dynamo' in sys.modules: call = torch.compiler.disable(call)
        self.module_type, self.hook = type(m).__name__, m.register_forward_hook(call)

    def remove(self) -> None:
        "Remove the hook from its module. A second call does nothing."
        self.hook.remove()

    def __repr__(self) -> str: return f'<Hook on {self.module_type}>'


def hookable(model: nn.Module) -> list[nn.Module]:
    "The modules of a model without those of TorchScript, which take no hooks."
    return [m for m in model.modules() if not isinstance(m, torch.jit.RecursiveScriptModule)]


class Hooks(list):
    """A list with one `Hook` on each module of `ms`. As a context manager, it removes them on exit. Deleting an item
    removes that hook too."""
    def __init__(self, ms: Iterable[nn.Module], f: Callable[..., Any]) -> None:
        super().__init__([Hook(m, f) for m in ms])

    def __enter__(self) -> 'Hooks': return self
    def __exit__(self, *exc: object) -> None: self.remove()

    def __delitem__(self, i: int | slice) -> None:
        for h in self[i] if isinstance(i, slice) else [self[i]]: h.remove()
        super().__delitem__(i)

    def remove(self) -> None:
        "Remove every hook from its module. The hooks stay in the list with what they recorded."
        for h in self: h.remove()
