"""States in 8 bits: blocks of 256 numbers, each a byte, and for each block a scale, a power of two.

A byte is a small floating-point number below 2: four bits of exponent, and four of mantissa, or three and a sign if any
number of the block is negative. It is rounded up or down at random, so that the mean of what is stored is the number.
Numbers that are too small for a byte become 0 or, in a block without negative ones, the smallest above 0, because rules
divide by roots of them. The kernels, by miniai.kernels.pointers, give the same bits."""
import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.kernels.memory import flat
from miniai.kernels.rounding import noise

__all__ = ['PER_BLOCK', 'ROW', 'is_packed', 'new_packed', 'packed', 'unpacked']

PER_BLOCK = 256  # numbers of a block
ROW = PER_BLOCK + 4  # bytes of a block: the numbers, then the scale as float32, negative if they have signs
_LOWEST, _MOST, _INFINITE = 112, 0x7fffffff, 0x7f800000  # the exponent of 2**-15; bits but for the sign; infinity


def is_packed(x: Tensor) -> bool:
    "Whether `x` has the bytes of numbers."
    return x.dtype is torch.uint8


def new_packed(n: int, device: torch.device) -> Tensor:
    "The bytes of `n` zeros, a row for each block."
    return torch.zeros(-(-n // PER_BLOCK), ROW, dtype=torch.uint8, device=device)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    "The numbers in `x` as float32, in the shape and memory layout of `like`."
    scale = x[:, PER_BLOCK:].contiguous().view(torch.float32)
    signed, codes = torch.signbit(scale), x[:, :PER_BLOCK].int()
    shift, size = 19 + signed.int(), torch.where(signed, codes & 127, codes)
    bits = (size + (_LOWEST << (23 - shift))) << shift
    numbers = torch.where(size > 0, bits.view(torch.float32), 0.) * scale.abs()
    numbers = torch.where(signed & (codes > 127), -numbers, numbers)
    out = torch.empty_like(like, dtype=torch.float32)
    flat(out).copy_(numbers.view(-1)[:out.numel()])
    return out


def packed(x: Tensor, like: Tensor, key: int, turn: int = 0) -> Tensor:
    """The bytes of the numbers in `x`, in the order of the memory of `like`, which has its shape. Rounded at random by
    `key` and `turn`, as `miniai.kernels.rounding.dithered` describes."""
    numbers = flat(torch.empty_like(like, dtype=torch.float32).copy_(x))
    missing = -len(numbers) % PER_BLOCK
    blocks, dice = (F.pad(v, (0, missing)).view(-1, PER_BLOCK) for v in (numbers, noise(numbers, key, turn)))
    signed = torch.signbit(blocks).any(1, keepdim=True)
    scale = ((blocks.view(torch.int32) & _MOST).amax(1, keepdim=True) & _INFINITE).view(torch.float32)
    sizes = (blocks * torch.where(scale > 0, 1/scale, 0.)).abs().view(torch.int32)
    shift = 19 + signed.int()
    codes = ((sizes + (dice.int() << (shift - 16))) >> shift) - (_LOWEST << (23 - shift))
    least = (~signed & (blocks > 0)).int()
    codes = codes.clamp(least, 255 >> signed.int()) | (torch.signbit(blocks).int() << 7)
    scale = torch.where(signed, -scale, scale)
    return torch.cat([codes.to(torch.uint8), scale.view(torch.uint8)], 1)
