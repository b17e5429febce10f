"A summary of a model as a table: modules, shapes, parameters and multiply-adds."
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from miniai.device import first_tensor
from miniai.diagnosis.capture import first_train_batch
from miniai.diagnosis.hooks import Hooks

__all__ = ['Summary', 'SummaryRow', 'summary']


@dataclass
class SummaryRow:
    """One module: its type, the shapes of its input and output (None if it has no tensor or never ran), its number of
    parameters, and its million multiply-adds per sample."""
    module: str
    input: tuple | None
    output: tuple | None
    params: int
    mflops: float

    def cells(self) -> list[str]:
        "The row as text."
        shapes = ['' if shape is None else str(shape) for shape in (self.input, self.output)]
        return [self.module, *shapes, f'{self.params:,}', f'{self.mflops:.1f}']


@dataclass
class Summary:
    "A table of modules for terminals and notebooks. `params` and `mflops` are the totals."
    rows: list[SummaryRow]
    params: int
    mflops: float
    head = ('Module', 'Input', 'Output', 'Num params', 'MFLOPS')

    def _table(self) -> list[list[str]]:
        total = SummaryRow('Total', None, None, self.params, self.mflops)
        return [list(self.head), *(r.cells() for r in self.rows), total.cells()]

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return '\n'.join('  '.join(f'{c:{a}{w}}' for c, a, w in zip(r, '<<<>>', widths, strict=True)) for r in table)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        head, *rows = ['|' + '|'.join(r) + '|' for r in self._table()]
        return '\n'.join([head, '|--|--|--|--:|--:|', *rows])


def summary(self: Any) -> Summary:
    """A row for each child of the model: shapes of input and output for the first training batch, number of parameters,
    whether they are frozen, and MFLOPS (million multiply-adds per sample, in convolutions and linear layers). Trains
    nothing. On several processes all must call it: each shows its own part of the batch, and the whole model."""
    children = list(self.model.children()) or [self.model]
    shapes, flops = {}, dict.fromkeys(self.model.modules(), 0.)

    def record(hook: Any, mod: nn.Module, inp: Any, outp: Any) -> None:
        i, o = first_tensor(inp), first_tensor(outp)
        shapes[mod] = tuple(None if t is None else tuple(t.shape) for t in (i, o))
        if i is not None and o is not None: flops[mod] += _multiply_adds(mod, i, o)/1e6

    with Hooks(self.model.modules(), record): first_train_batch(self, 'after_predict', [])
    rows = [SummaryRow(_named(m), *shapes.get(m, (None, None)), _num(m.parameters()),
                       sum(flops[s] for s in m.modules())) for m in children]
    return Summary(rows, _num(self.model.parameters()), sum(flops.values()))


def _named(m: nn.Module) -> str:
    "The module's type, and whether its parameters train."
    trains = {p.requires_grad for p in m.parameters()}
    return type(m).__name__ + (' (frozen)' if trains == {False} else ' (partly frozen)' if len(trains) == 2 else '')


def _multiply_adds(mod: nn.Module, inp: Tensor, outp: Tensor) -> float:
    """Multiply-adds of one sample in a module's own parameters: each weight of a convolution or linear layer counts
    once for every position where it is applied, any other parameter once."""
    own = list(mod.parameters(recurse=False))
    if isinstance(mod, nn.Linear): positions = outp[0, ..., 0].numel() if outp.ndim > 1 else 1
    elif isinstance(mod, _ConvNd): positions = (inp if mod.transposed else outp)[0, 0].numel()
    else: return _num(own)
    weight = mod.weight
    return weight.numel()*positions + _num(p for p in own if p is not weight)


def _num(parameters: Iterable[nn.Parameter]) -> int: return sum(p.numel() for p in parameters)
