"""A head whose weights are an embedding's (Press and Wolf, 2016, arXiv 1608.05859)."""

from torch import Tensor, nn


class TiedHead(nn.Module):
    """Scores against the rows of an embedding, which it does not hold. (..., D), (V, D), (V,) -> (..., V)"""

    def forward(self, x: Tensor, embedding: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, embedding, bias)
