"What torch's errors do not say: in which batch one was raised, what was in it, and what to do about it."
import re
from collections.abc import Mapping
from traceback import walk_tb
from typing import Any

from torch import Tensor

from miniai.device import first_tensor, tensors_in

__all__ = ['note_error']

_CONVERT = "Convert in the dataset, or with BatchTransformCB(lambda b: ({}, {}))"
_ADVICE = {  # the first pattern that an error matches
    r'more than 1 value per channel': "A norm cannot train on the one sample of this batch: set drop_last=True in the "
                                      "training loader, or use another batch size",
    r'more than 1 spatial element': "An instance norm needs more than one position per channel: give it larger inputs, "
                                    "or remove it",
    r'same device|expected device|\(torch\.cuda\S+ and .*\(torch\.(?!cuda)|\(torch\.(?!cuda)\S+ and .*\(torch\.cuda':
        "Model and batch are on different devices: add DeviceCB() to cbs",
    r"argument #1 'indices'": "An embedding takes whole numbers. " + _CONVERT.format('b[0].long()', '*b[1:]'),
    r'expected target dtype|expected scalar type Long': "Targets that are classes must be int64. "
                                                        + _CONVERT.format('b[0]', 'b[1].long()'),
    r'desired output type|Found dtype \w+ but expected': "This loss takes targets of the dtype of the predictions. "
                                                         + _CONVERT.format('b[0]', 'b[1].{}()'),
    r'same dtype|share same datatype|expected scalar type|put type \(.* should be the same|does not match weight dtype':
        "The input must have the dtype of the model. " + _CONVERT.format('b[0].{}()', '*b[1:]')}
_METHODS = dict(float64='double', float16='half', bfloat16='bfloat16')


def note_error(learn: Any, e: BaseException) -> None:
    "Add a note to an error that was raised within a batch: epoch, batch, its shapes and dtypes, and advice if known."
    frames = [frame for frame, _ in walk_tb(e.__traceback__)]
    around = [f.f_locals for f in frames if f.f_code.co_qualname.startswith('with_cbs.')]
    in_batch = any(v['o'] is learn and v['f'].__name__ == '_one_batch' for v in around)
    if not isinstance(e, Exception) or not in_batch or _is_ours(e, frames[-1]): return
    phase, dtypes, devices = 'training' if learn.model.training else 'validation', *_kinds_of(learn.model)
    e.add_note(f"in epoch {learn.epoch}, {phase} batch {learn.iter} (both counted from 0): {_described(learn.batch)}; "
               f"the model is {dtypes or 'without parameters'}{devices and ' on ' + devices}")
    advice = next((text for pattern, text in _ADVICE.items() if re.search(pattern, str(e))), None)
    if advice: e.add_note(advice.format(_METHODS.get(dtypes, 'float')))


def _is_ours(e: Exception, innermost: Any) -> bool:
    "Did the library itself raise it, with a message that says what to do?"
    return type(e) is not RuntimeError and innermost.f_globals.get('__name__', '').startswith('miniai.')


def _kinds_of(model: Any) -> tuple[str, str]:
    "The dtypes and devices of a model's parameters, as text."
    params = [p for p in getattr(model, 'parameters', list)() if p.dtype.is_floating_point]
    return tuple(' and '.join(sorted({str(x).removeprefix('torch.') for x in kinds})) for kinds in (
        (p.dtype for p in params), (p.device for p in params)))


def _described(x: Any) -> str:
    "A batch in a line: dtypes, shapes, and devices other than the CPU."
    if isinstance(x, Tensor):
        where = '' if x.device.type == 'cpu' else f' on {x.device}'
        return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}{where}"
    if isinstance(x, Mapping): return '{' + ', '.join(f'{k}: {_described(v)}' for k, v in x.items()) + '}'
    if isinstance(x, tuple | list) and first_tensor(x) is not None:
        inside = [_described(o) for o in x[:10]] + ['…']*(len(x) > 10)
        return '(' + ', '.join(inside) + ')'
    inside = [_described(t) for t in tensors_in(x)]
    return type(x).__name__ + (f" of {', '.join(inside)}" if inside else '')
