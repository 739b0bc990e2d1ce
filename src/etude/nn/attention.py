"""softmax(q k^T / sqrt(D)) v by whichever way is faster: torch's kernel of one piece, or the formula as it stands."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from etude.nn.dropout import dropout as drop

SHORT = 512
"""Keys up to which, in bf16 on a CPU, the formula is faster than torch's kernel: up to 15 times in training, 5 in
inference. That kernel has no dropout either; torch then computes the formula in a roundabout way."""


def attend(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    *,
    mask: Bool[Tensor, "B _ T S"] | Bool[Tensor, "T S"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """`mask` is True where a query may look; `causal`, for T = S: at no later key. `dropout`: the share of attention
    weights that is dropped, in training."""
    short = q.dtype == torch.bfloat16 and k.shape[2] <= SHORT
    if q.device.type != "cpu" or not (short or dropout):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    return drop(scores.softmax(3), dropout) @ v
