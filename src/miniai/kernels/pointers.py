"Functions that generated kernels import: typed pointers, bfloat16 by its bits, numbers in 8 bits. Imports Numba."
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

__all__ = ['f32_at', 'f64_at', 'u16_at', 'u8_at', 'widened', 'rounded', 'bits_of', 'mixed', 'drawn', 'low', 'high',
           'dithered', 'format_of', 'unpacked', 'largest', 'draw', 'pack']

FLAGS = dict(fastmath={'contract', 'nsz'}, error_model='numpy', nogil=True)


def _pointer_to(element):
    @intrinsic
    def at(context, address):
        def build(ctx, builder, signature, args):
            return builder.inttoptr(args[0], ctx.get_value_type(signature.return_type))
        return types.CPointer(element)(address), build
    return at


def _bitcast(source, target):
    @intrinsic
    def cast(context, x):
        def build(ctx, builder, signature, args): return builder.bitcast(args[0], ctx.get_value_type(target))
        return target(source), build
    return cast


f32_at, f64_at, u16_at, u8_at = map(_pointer_to, (types.float32, types.float64, types.uint16, types.uint8))
bits_of, _float = _bitcast(types.float32, types.uint32), _bitcast(types.uint32, types.float32)
_16, _1, _LOW, _HALF, _QUIET = (np.uint32(x) for x in (16, 1, 0xffff, 0x7fff, 0x7fc0))
_EXPONENT, _MAGNITUDE = np.uint32(0x7f800000), np.uint32(0x7fffffff)
_0, _7, _19, _20, _23, _24, _31, _127 = (np.uint32(x) for x in (0, 7, 19, 20, 23, 24, 31, 127))
_LOWEST, _BYTE, _ONE = np.uint32(112), np.uint32(255), np.float32(1)
_15, _A, _B = np.uint32(15), np.uint32(0x9e3779b9), np.uint32(0x846ca68b)


@njit(**FLAGS)
def widened(u):
    "A bfloat16, given by its bits, as float32."
    return _float(np.uint32(np.uint32(u) << _16))


@njit(**FLAGS)
def rounded(x):
    "The bits of the bfloat16 nearest to `x`, ties to even."
    u = bits_of(x)
    r = np.uint32(np.uint32(u + np.uint32(_HALF + np.uint32(np.uint32(u >> _16) & _1))) >> _16)
    return np.uint16(_QUIET if x != x else r)


@njit(**FLAGS)
def mixed(x):
    "One round of a 32-bit hash, random enough for the noise that rounding needs."
    x = np.uint32(np.uint32(x ^ np.uint32(x >> _15)) * _B)
    return np.uint32(x ^ np.uint32(x >> _16))


@njit(**FLAGS)
def drawn(i, key):
    "A 32-bit random number for element `i`, uniform if `key` is."
    return mixed(np.uint32(np.uint32(np.uint32(i) * _A) + key))


@njit(**FLAGS)
def low(noise):
    "The lower 16 bits of 32."
    return np.uint32(noise & _LOW)


@njit(**FLAGS)
def high(noise):
    "The upper 16 bits of 32."
    return np.uint32(noise >> _16)


@njit(**FLAGS)
def dithered(x, noise):
    "The bits of `x` as bfloat16, rounded up if its lower half plus `noise`, 16 bits, carries."
    u = bits_of(x)
    r = np.uint32(np.uint32(u + noise) >> _16)
    infinite = np.uint32(u & _MAGNITUDE) == _EXPONENT
    return np.uint16(_QUIET if x != x else (np.uint32(u >> _16) if infinite else r))


# Numbers in 8 bits, as miniai.kernels.packed describes them. Numba computes with 64 bits and cuts the results: only if
# LLVM sees that 32 are enough, as with a shift that is below 32 for certain, does it work on 32-bit numbers.

@njit(**FLAGS)
def format_of(scale):
    "How the bytes of a block are read, from its scale: the bits of size and sign, the shift, and the lowest exponent."
    signed = np.uint32(bits_of(scale) >> _31)
    shift = np.uint32(_19 + signed)
    return np.uint32(_BYTE >> signed), np.uint32(signed << _7), shift, np.uint32(_LOWEST << np.uint32(_23 - shift))


@njit(**FLAGS)
def unpacked(u, sizes, signs, shift, lowest, scale):
    "The number that a byte stands for, given the format and the size of the scale."
    c = np.uint32(u)
    size = np.uint32(c & sizes)
    x = _float(np.uint32(np.uint32(size + lowest) << np.uint32(shift & _31)))
    x = (x if size > _0 else np.float32(0)) * scale
    return _float(np.uint32(bits_of(x) ^ np.uint32(np.uint32(c & signs) << _24)))


@njit(**FLAGS)
def largest(x, n):
    "The scale of `n` numbers: the power of two below the largest, negative if any has a sign."
    size, signs = _0, _0
    for j in range(n):
        u = bits_of(x[j])
        signs = np.uint32(signs | u)
        u = np.uint32(u & _MAGNITUDE)
        size = np.uint32(u if u > size else size)
    return _float(np.uint32(np.uint32(size & _EXPONENT) | np.uint32(np.uint32(signs >> _31) << _31)))


@njit(**FLAGS)
def draw(noise, n, place, key, rounds):
    "Fill `noise` with the random numbers of `n` elements from `place` on, after some more rounds of the hash."
    start = np.uint32(np.uint32(np.uint32(place) * _A) + key)
    for j in range(n):
        x = mixed(np.uint32(start + np.uint32(np.uint32(j) * _A)))
        for _ in range(rounds): x = mixed(x)
        noise[j] = x


@njit(**FLAGS)
def pack(x, n, out, scale, noise, half):
    "Write the bytes of `n` numbers, rounded at random by one `half` of `noise`: 0 for the lower, 16 for the upper."
    most, signs, shift, lowest = format_of(scale)
    inverse = _ONE/abs(scale) if abs(scale) > np.float32(0) else np.float32(0)
    finer, positive, half = np.uint32(shift - _16), np.uint32(_1 - np.uint32(signs >> _7)), np.uint32(half & _31)
    for j in range(n):
        size = np.uint32(bits_of(x[j]*inverse) & _MAGNITUDE)
        dice = np.uint32(np.uint32(np.uint32(noise[j] >> half) & _LOW) << finer)
        c = np.uint32(max(np.uint32(np.uint32(size + dice) >> shift), lowest) - lowest)
        least = positive if x[j] > np.float32(0) else _0
        c = max(min(np.uint32(c), most), least)
        out[j] = np.uint8(np.uint32(c | np.uint32(np.uint32(bits_of(x[j]) >> _31) << _7)))
