"Functions that generated kernels import: addresses as typed pointers, and bfloat16 by its bits. Imports Numba."
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

__all__ = ['f32_at', 'f64_at', 'u16_at', 'widened', 'rounded', 'bits_of', 'mixed', 'drawn', 'low', 'high', 'dithered']

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


f32_at, f64_at, u16_at = map(_pointer_to, (types.float32, types.float64, types.uint16))
bits_of, _float = _bitcast(types.float32, types.uint32), _bitcast(types.uint32, types.float32)
_16, _1, _LOW, _HALF, _QUIET = (np.uint32(x) for x in (16, 1, 0xffff, 0x7fff, 0x7fc0))
_EXPONENT, _MAGNITUDE = np.uint32(0x7f800000), np.uint32(0x7fffffff)
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
