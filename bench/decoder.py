"""The model that scale.py and fsdp_memory.py train: a decoder of text, as small or as large as wanted.

Parameters are counted on the meta device, where a model of any size takes no memory.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    "A decoder's shape and the batch that one process trains with at each step."
    vocab: int
    width: int
    layers: int
    inner: int
    seqs: int
    length: int

    @property
    def tokens(self): return self.seqs*self.length


SMALL  = Shape(1000, 256, 4, 768, seqs=2, length=64)                # 3.9M; a step takes about 50 ms on one core
M30    = Shape(16384, 384, 10, 1024, seqs=16, length=1024)
M100   = Shape(8192, 768, 12, 2048, seqs=1, length=16)              # a small batch: fsdp_memory.py looks at memory only
LLAMA7 = Shape(32000, 4096, 32, 11008, seqs=1, length=4096)         # the shape of Llama 2 7B


class Block(nn.Module):
    "Attention, then a gated layer, each added to what came in."
    def __init__(self, shape):
        super().__init__()
        d, inner = shape.width, shape.inner
        self.heads = max(1, d//64)
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (nn.Linear(*io, bias=False) for io in ((d, inner), (d, inner), (inner, d)))

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (m(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h))*self.up(h))


class Decoder(nn.Module):
    "Tokens (batch, length) to logits (batch, length, vocabulary)."
    def __init__(self, shape):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm, self.head = nn.RMSNorm(shape.width), nn.Linear(shape.width, shape.vocab, bias=False)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks: x = block(x)
        return self.head(self.norm(x))


def batch(shape, seed=0):
    gen = torch.Generator().manual_seed(seed)
    text = torch.randint(shape.vocab, (shape.seqs, shape.length + 1), generator=gen)
    return text[:, :-1], text[:, 1:]


def loss_func(preds, targets): return F.cross_entropy(preds.flatten(0, 1), targets.flatten())


def count(module): return sum(p.numel() for p in module.parameters())


def parameters(shape):
    "Parameters of the ends (embedding, last norm, head) and of each block, counted without any memory."
    with torch.device('meta'): model = Decoder(shape)
    blocks = [count(b) for b in model.blocks]
    return count(model) - sum(blocks), blocks


def flops(shape):
    "Operations of forward and backward for the head and for each block: 6 a weight and token, and attention."
    matrices = 4*shape.width**2 + 3*shape.width*shape.inner
    attention = 6*shape.length*shape.width                       # a token; causal, so half of all pairs
    return 6*shape.vocab*shape.width*shape.tokens, (6*matrices + attention)*shape.tokens
