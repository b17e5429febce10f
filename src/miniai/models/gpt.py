"A small GPT: token ids to logits of the token that follows each of them."
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['GPT']


class GPT(nn.Module):
    """A decoder of `layers` transformer blocks with the norms first (Vaswani et al. 2017; Radford et al. 2019), with
    learned positions, for at most `context` tokens. Token ids (N, T) to logits (N, T, `tokens`)."""
    def __init__(self, tokens: int, context: int = 64, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(tokens, width), nn.Embedding(context, width)
        for e in (self.embed, self.positions): nn.init.normal_(e.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


class Block(nn.Module):
    "Causal self-attention with `heads`, then two layers around a GELU, each added to its input. (N, T, width) to same."
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3*width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4*width), nn.GELU(), nn.Linear(4*width, width))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, T, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
