"A summary of a model as a table: modules, shapes, parameters and multiply-adds, what trains, and memory."
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from miniai.callbacks.dry_run import dry_run
from miniai.callbacks.trained import new_optimizer
from miniai.device import first_tensor
from miniai.diagnosis.capture import first_train_batch
from miniai.diagnosis.hooks import Hooks, hookable
from miniai.diagnosis.memory import bytes_of, in_bytes, kept_for_backward, measured, state_bytes
from miniai.metrics.batch import batch_size

__all__ = ['Summary', 'SummaryRow', 'summary']


@dataclass
class SummaryRow:
    """One module: its type, the shapes of its input and output (None if it has no tensor or never ran), its number of
    parameters, and `mflops`, its millions of multiply-adds per sample."""
    module: str
    input: tuple | None
    output: tuple | None
    params: int
    mflops: float

    def cells(self) -> list[str]:
        "The row as text."
        shapes = ['' if shape is None else str(shape) for shape in (self.input, self.output)]
        return [self.module, *shapes, f'{self.params:,}', '' if math.isnan(self.mflops) else _millions(self.mflops)]


@dataclass
class Summary:
    """A table of modules for terminals and notebooks. `params` and `mflops` are the totals, and `trained` is how many
    of the parameters train. `memory` has the bytes that a step with a batch of `batch_size` takes on this process:
    parameters, gradients, optimizer (its state; None if it cannot be known before the first step), and activations,
    which the forward pass keeps for the backward. With torch.func.grad or nested tensors in forward torch cannot tell
    activations, None, nor `mflops`, NaN."""
    rows: list[SummaryRow]
    params: int
    mflops: float
    trained: int | None = None
    batch_size: int | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    head = ('Module', 'Input', 'Output', 'Num params', 'M mult-adds')

    def _table(self) -> list[list[str]]:
        total = SummaryRow('Total', None, None, self.params, self.mflops)
        return [list(self.head), *(r.cells() for r in self.rows), total.cells()]

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        rows = ['  '.join(f'{c:{a}{w}}' for c, a, w in zip(r, '<<<>>', widths, strict=True)) for r in table]
        return '\n'.join([*rows, *self._notes()])

    def _notes(self) -> list[str]:
        if self.trained is None: return []
        known = {nm: n for nm, n in self.memory.items() if n is not None}
        parts = [f'{nm} {in_bytes(n)}' for nm, n in known.items()]
        reasons = dict(optimizer='the optimizer, after its first step', activations='activations, which torch cannot '
                       'measure, like multiply-adds, with torch.func.grad or nested tensors in forward')
        unknown = ''.join(f', and {reasons[nm]}' for nm, n in self.memory.items() if n is None)
        return [f'{self.trained:,} of {self.params:,} parameters train.',
                f'Memory of a step with {self.batch_size} samples: {in_bytes(sum(known.values()))} '
                f'({", ".join(parts)}){unknown}.']

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        head, *rows = ['|' + '|'.join(r) + '|' for r in self._table()]
        return '\n'.join([head, '|--|--|--|--:|--:|', *rows, *['']*bool(self._notes()), *self._notes()])


def summary(self: Any) -> Summary:
    """A row for each child of the model: shapes of input and output for the first training batch, number of parameters,
    whether they are frozen, and millions of multiply-adds per sample: those of matrix products, convolutions and
    attention, half of what torch's FlopCounterMode counts. Below, what trains and the memory of a step. Trains nothing.
    On several processes all must call it: each shows its own part of the batch, and the whole model."""
    batch, shapes, adds, total, kept = measured(lambda measures: _look(self, measures))
    children = list(self.model.children()) or [self.model]
    n, params = batch_size(batch), [p for p in self.model.parameters() if not is_lazy(p)]
    trained = [p for p in params if p.requires_grad]
    memory = dict(parameters=bytes_of(params), gradients=bytes_of(trained), optimizer=_state_bytes(self),
                  activations=kept)
    rows = [SummaryRow(_named(m), *shapes.get(m, (None, None)), _num(m.parameters()), adds.get(m, math.nan)/n/1e6)
            for m in children]
    return Summary(rows, _num(params), total/n/1e6, _num(trained), n, memory)


def _look(learn: Any, measures: bool) -> tuple[Any, dict, dict, float, int | None]:
    """The first training batch; shapes and multiply-adds of each module; their total; and the bytes kept for backward.
    The last three are unknown unless it `measures`."""
    shapes, counted = {}, _MultiplyAdds(learn.model)

    def record(hook: Any, mod: nn.Module, inp: Any, outp: Any) -> None:
        i, o = first_tensor(inp), first_tensor(outp)
        shapes[mod] = tuple(None if t is None else tuple(t.shape) for t in (i, o))

    with ExitStack() as around:
        around.enter_context(Hooks(hookable(learn.model), record))
        if measures: kept = around.enter_context(counted) or around.enter_context(kept_for_backward())
        batch = first_train_batch(learn, 'after_predict', [])
    if not measures: return batch, shapes, {}, math.nan, None
    return batch, shapes, counted.of, counted.total, kept[0]


class _MultiplyAdds:
    "Within it, counts the multiply-adds of each module of a model, those of its own modules included."
    def __init__(self, model: nn.Module) -> None:
        self.model, self.of, self.total, self._undo = model, dict.fromkeys(model.modules(), 0.), 0., ExitStack()

    def __enter__(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
        # torch counts attention on GPUs alone
        on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _first_shapes(sdpa_flop)}
        counter, started = FlopCounterMode(display=False, custom_mapping=on_cpu), []
        def before(mod: nn.Module, inp: Any) -> None: started.append(counter.get_total_flops())
        def after(mod: nn.Module, inp: Any, outp: Any) -> None:
            self.of[mod] += (counter.get_total_flops() - started.pop())/2
        for m in hookable(self.model):
            self._undo.callback(m.register_forward_pre_hook(before).remove)
            self._undo.callback(m.register_forward_hook(after).remove)
        self._undo.callback(lambda: setattr(self, 'total', counter.get_total_flops()/2))
        self._undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings('ignore', 'Using `torch.compile')  # of the counter's own hooks, which may fire twice
        self._undo.enter_context(counter)

    def __exit__(self, *exc: object) -> None: self._undo.close()


def _first_shapes(flops: Callable) -> Callable:
    def of(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int: return flops(q, k, v)
    return of


def _state_bytes(learn: Any) -> int | None:
    "Bytes of the optimizer's state: as it is after a fit, else after a step with gradients of zero, which is undone."
    params = [p for p in learn.model.parameters() if p.requires_grad]
    known = state_bytes(learn.opt) if learn.opt is not None else None
    if known or learn.opt_func is None or learn.lr is None or not params: return known or None
    with dry_run(learn, trains=True):
        for p in params: p.grad = torch.zeros_like(p)
        try:
            opt = new_optimizer(learn, learn.lr)
            opt.step()
        except TypeError: return None  # an optimizer whose step takes a closure
        return state_bytes(opt)


def _named(m: nn.Module) -> str:
    "The module's type, and whether its parameters train."
    trains = {p.requires_grad for p in m.parameters()}
    return type(m).__name__ + (' (frozen)' if trains == {False} else ' (partly frozen)' if len(trains) == 2 else '')


def _millions(x: float) -> str:
    "With three significant digits."
    return f'{x:,.0f}' if x >= 100 else f'{x:#.3g}' if x else '0'


def _num(parameters: Iterable[nn.Parameter]) -> int: return sum(p.numel() for p in parameters)
