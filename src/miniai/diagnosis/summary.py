"The model as a table: modules, shapes, parameters and multiply-adds. Knows hooks, and how to run one batch."
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from miniai.callbacks.capture import first_train_batch
from miniai.device import first_tensor
from miniai.diagnosis.hooks import Hooks

__all__ = ['Summary', 'SummaryRow', 'summary']


@dataclass
class SummaryRow:
    "One module: name, shapes of its input and output, number of parameters, millions of multiply-adds a sample."
    module: str
    input: tuple | None
    output: tuple | None
    params: int
    mflops: float

    def cells(self) -> list[str]:
        "The row as text."
        return [self.module, _shape(self.input), _shape(self.output), f'{self.params:,}', f'{self.mflops:.1f}']


def _shape(s: tuple | None) -> str: return '' if s is None else str(s)


@dataclass
class Summary:
    "A table of modules that prints in a terminal and renders in a notebook. `params` and `mflops` are the totals."
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
        aligns = '<<<>>'
        return '\n'.join('  '.join(f'{c:{a}{w}}' for c, a, w in zip(r, aligns, widths, strict=True)) for r in table)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        head, *rows = ['|' + '|'.join(r) + '|' for r in self._table()]
        return '\n'.join([head, '|--|--|--|--:|--:|', *rows])


def _multiply_adds(mod: nn.Module, inp: Tensor, outp: Tensor) -> float:
    """Millions of multiply-adds of one sample in a module of its own parameters: weights of a convolution or linear
    layer count once for every position that they are applied at, other parameters once."""
    own, weight = list(mod.parameters(recurse=False)), getattr(mod, 'weight', None)
    if not isinstance(mod, nn.Linear | _ConvNd): return sum(p.numel() for p in own) / 1e6
    if isinstance(mod, nn.Linear): positions = outp[0, ..., 0].numel() if outp.ndim > 1 else 1
    else: positions = (inp if mod.transposed else outp)[0, 0].numel()
    return (weight.numel()*positions + sum(p.numel() for p in own if p is not weight)) / 1e6


def _num_params(mods: Any) -> int:
    return sum(p.numel() for p in {id(p): p for m in mods for p in m.parameters()}.values())


def summary(self: Any) -> Summary:
    """The model's children as a table: input and output shapes of the first training batch, parameters, and MFLOPS
    (millions of multiply-adds of one sample, of convolutions and linear layers), with totals. Nothing is trained."""
    children = list(self.model.children()) or [self.model]
    shapes, flops = {}, dict.fromkeys(self.model.modules(), 0.)

    def see(hook: Any, mod: nn.Module, inp: Any, outp: Any) -> None:
        i, o = first_tensor(inp), first_tensor(outp)
        shapes[mod] = tuple(None if t is None else tuple(t.shape) for t in (i, o))
        if i is not None and o is not None: flops[mod] += _multiply_adds(mod, i, o)

    with Hooks(self.model.modules(), see): first_train_batch(self, 'after_predict', [])
    rows = [SummaryRow(type(m).__name__, *shapes.get(m, (None, None)), _num_params([m]),
                       sum(flops[s] for s in m.modules())) for m in children]
    return Summary(rows, _num_params([self.model]), sum(flops.values()))
