"A network for tables: numbers and categories in, logits or numbers out."
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ['TableNet']


class TableNet(nn.Module):
    """Outputs for rows of a table: numbers (N, `numbers`) and, if there are `categories`, their indices (N, K). Each
    category column has a vector for each of its values (Guo & Berkhahn 2016), as many as `categories` says. A linear
    model and a small network of `widths` are added up, so that a small table is no worse off than with the former.
    (N, `outputs`), or (N,) for one output."""
    def __init__(self, numbers: int, categories: Sequence[int] = (), outputs: int = 1, widths: Sequence[int] = (64, 32),
                 dropout: float = 0.5) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, min(50, (n + 1)//2)) for n in categories)
        for e in self.embeddings: nn.init.normal_(e.weight, std=0.01)
        n_in = numbers + sum(e.embedding_dim for e in self.embeddings)
        self.linear, layers = nn.Linear(n_in, outputs), []
        for ni, nf in zip((n_in, *widths), widths, strict=False):
            layers += [nn.Linear(ni, nf), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*layers, nn.Linear((n_in, *widths)[-1], outputs))
        nn.init.zeros_(self.net[-1].weight)  # the first step is that of the linear model

    def forward(self, numbers: Tensor, categories: Tensor | None = None) -> Tensor:
        if categories is None and self.embeddings: raise TypeError(
            "the table has categories, and the model was given numbers alone: use Learner with TrainCB(n_inp=2)")
        parts = [numbers, *(e(categories[:, i]) for i, e in enumerate(self.embeddings))]
        x = torch.cat(parts, 1) if len(parts) > 1 else numbers
        out = self.linear(x) + self.net(x)
        return out.squeeze(-1) if out.shape[1] == 1 else out
