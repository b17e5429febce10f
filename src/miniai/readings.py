"Numbers that stay on the device until somebody looks at them, so that a training loop never waits. Knows torch alone."
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ['Readings', 'number', 'is_number']


def number(x: float | Tensor) -> float | Tensor:
    "A scalar that can be summed without waiting: a Python float from the CPU, a detached tensor from elsewhere."
    if not isinstance(x, Tensor): return x
    return x.item() if x.is_cpu else x.detach()


def is_number(x: object) -> bool:
    "Is `x` a Python number or a tensor of one element?"
    return x.numel() == 1 if isinstance(x, Tensor) else isinstance(x, int | float)


class Readings:
    "A growing list of scalars. Those on an accelerator are kept there, and read all at once by `values`."
    def __init__(self, values: Iterable = ()) -> None: self._values, self._pending = list(values), []
    def __len__(self) -> int: return len(self._values) + len(self._pending)

    def append(self, x: float | Tensor) -> None:
        "Add a number or a tensor of one element; a larger tensor is kept as it is, cut from its graph."
        if isinstance(x, Tensor) and x.numel() != 1: return self.values.append(x.detach())
        x = number(x)
        if isinstance(x, Tensor): self._pending.append(x.reshape(()))
        elif self._pending:       self._pending.append(torch.tensor(x))
        else:                     self._values.append(x)

    @property
    def values(self) -> list[float]:
        "All of them as Python floats. This is where the device is waited for."
        if self._pending:
            self._values += _read(self._pending)
            self._pending.clear()
        return self._values


def _read(xs: list[Tensor]) -> list[float]:
    if len({(x.device, x.dtype) for x in xs}) == 1: return torch.stack(xs).tolist()
    return [x.item() for x in xs]
