"Which path steps a parameter. It depends on the parameter and the device, never on timing."
from miniai.distributed.dtensor import has_sums_in_parts, local, placement
from miniai.kernels.batched import BatchedPass
from miniai.kernels.fused import FusedPass
from miniai.kernels.packed import is_packed
from miniai.kernels.triton import TritonPass
from miniai.optim.slot import Slot

__all__ = ['path_of']


def path_of(slot: Slot) -> tuple[type | None, str]:
    """The pass that steps a parameter together with others, or None if the eager path steps it alone; and why not a
    better one, '' if there is none."""
    why = _eager_reason(slot)
    if why: return None, why
    tensors = list(map(local, (slot.p, slot.p.grad, *slot.tensors[1:])))
    kernel = FusedPass if tensors[0].is_cpu else TritonPass
    why = next(filter(None, map(kernel.unsupported, tensors)), '')
    return (BatchedPass, why) if why else (kernel, '')


def _eager_reason(slot: Slot) -> str:
    "Why a parameter must be stepped alone; '' if it need not."
    if slot.program.trace is None: return slot.program.untraced
    p, *others = slot.p, slot.p.grad, *slot.tensors[1:]
    where = placement(p)
    if has_sums_in_parts(where) or any(placement(x) != where for x in others):
        return 'its gradient or state is placed differently on the processes, or is a partial sum'
    p, *others = map(local, (p, *others))
    in_bytes = [x for x in others if is_packed(x)]
    if in_bytes:
        others = [x for x in others if not is_packed(x)]
        why = next(filter(None, map(FusedPass.unsupported, (p, *others))), '')
        if why: return f'{why} for states in 8 bits'
    why = next(filter(None, map(BatchedPass.unsupported, (p, *others))), '')
    if why: return why
    alike = [(x.shape, x.stride(), x.device) for x in (p, *others)]
    if others[0].dtype is p.dtype and all(x == alike[0] for x in alike): return ''
    return 'its gradient or state has another layout or dtype, or is on another device'
