"""Transformer: translation by attention alone (Vaswani et al., 2017, arXiv 1706.03762).

Reference: transformers 5.23 `MarianMTModel` (layout "transformers"): equal outputs to 1e-5 relative in fp32, with
post-LN and Marian's positions. Sources of what goes beyond the paper:
    pre-LN       Xiong et al., 2020, arXiv 2002.04745: LN before each sublayer, and once after the last layer
    DLCL         Wang et al., 2019, arXiv 1906.01787: a layer reads a learned mix of all earlier outputs
    DeepNorm     Wang et al., 2022, arXiv 2203.00555: x <- LN(alpha x + f(x)), weights scaled by beta
Nothing is computed for padding: linear layers see the tokens of a batch laid end to end (nn/packing.py).

Shapes: B sentences, S source tokens and T target tokens of the longest, M and N source and target tokens in all,
D width, H heads, F feed-forward width, V vocabulary, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.language.beam import Hypothesis, Penalty, search
from etude.nn.activations import ACTIVATIONS, Activation
from etude.nn.ids import asked, check_ids
from etude.nn.packing import PackedAttention, Packing
from etude.nn.tied import TiedHead

Norm = Literal["post", "pre", "dlcl", "deepnorm"]
Positions = Literal["paper", "marian", "tensor2tensor", "fairseq"]


@dataclass(frozen=True)
class Config:
    vocab_size: int = 37_000
    width: int = 512
    depth: int = 6
    """Encoder layers."""
    decoder_depth: int | None = None
    """Decoder layers; None: as many as the encoder's."""
    num_heads: int = 8
    ffn: int = 2048
    """Width of the feed-forward sublayers."""
    dropout: float = 0.1
    """On the embeddings and on each sublayer's output."""
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: Activation = "relu"
    norm: Norm = "post"
    positions: Positions = "paper"
    """The layout of the sinusoids, on which checkpoints depend: see `sinusoids`."""
    output_bias: bool = False
    """A bias on the logits, which Marian has and the paper has not."""
    padding: int = 0
    begin: int = 1
    """The token that the decoder reads first."""
    end: int = 2

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "num_heads", "ffn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.decoder_depth is not None and self.decoder_depth < 1:
            raise ValueError(f"decoder_depth is {self.decoder_depth}; it must be at least 1, or None")
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width {self.width} must be a multiple of twice num_heads {self.num_heads}")
        for name, table in (("norm", STYLES), ("positions", ANGLES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in table:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(table)}")
        for name in ("padding", "begin", "end"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} is {getattr(self, name)}, which is no id below {self.vocab_size}")

    @property
    def depths(self) -> tuple[int, int]:
        """Layers of encoder and decoder."""
        return self.depth, self.decoder_depth or self.depth

    def build(self) -> "Transformer":
        return Transformer(self)


# ---------------------------------------------------------------- positions (section 3.5)


def _interleaved(angles: Tensor) -> Tensor:
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def _halves(angles: Tensor) -> Tensor:
    return torch.cat([angles.sin(), angles.cos()], -1)


ANGLES: dict[str, tuple[Callable[[int], int], Callable[[Tensor], Tensor]]] = {
    "paper": (lambda pairs: pairs, _interleaved),
    "marian": (lambda pairs: pairs, _halves),
    "tensor2tensor": (lambda pairs: pairs - 1, _halves),
    "fairseq": (lambda pairs: pairs - 1, _halves),
}
"""By layout: the denominator of the exponent for D/2 pairs, and how sines and cosines lie."""


def sinusoids(positions: Int[Tensor, "N"], width: int, layout: Positions) -> Float[Tensor, "N D"]:
    """PE of these positions, in float32. With angle_i = position 10000^(-i / n) for i = 0 ... D/2 - 1:

    "paper": sine and cosine of each angle side by side, n = D/2 (section 3.5). "marian": all sines, then all cosines,
    n = D/2. "tensor2tensor": the same halves with n = D/2 - 1. "fairseq": as tensor2tensor, and its positions count
    from padding + 1, which `Transformer` adds.
    """
    pairs = width // 2
    divisor, lay = ANGLES[layout]
    exponents = torch.arange(pairs, device=positions.device, dtype=torch.float64) / max(1, divisor(pairs))
    return lay(positions.double()[:, None] * 10_000.0**-exponents).float()


# ---------------------------------------------------------------- sublayers (sections 3.2, 3.3)


@runtime_checkable
class Attend(Protocol):
    """softmax(q k^T / sqrt(D/H)) v, over whichever keys a query may see: `PackedAttention`, or one that remembers."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor: ...


class Attention(nn.Module):
    """Multi-head attention (section 3.2.2) of N packed tokens to M. (N, D), (M, D) -> (N, D)"""

    def __init__(self, config: Config):
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query, self.key, self.value, self.out = (nn.Linear(config.width, config.width) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H, D/H)"""
        return x.unflatten(-1, (self.num_heads, -1))

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens (M, D) are looked at by and what they give, (M, H, D/H) each."""
        return self.heads(self.key(memory)), self.heads(self.value(memory))

    def forward(self, x: Tensor, memory: "Memory", attend: Attend) -> Tensor:
        k, v = memory[self] if isinstance(memory, dict) else self.keys_values(memory)
        mixed = attend(self.heads(self.query(x)), k, v, dropout=self.dropout if self.training else 0.0)
        return self.out(mixed.flatten(-2))


Memory = Tensor | dict[nn.Module, tuple[Tensor, Tensor]]
"""The tokens that are looked at (M, D); or, where these were computed before, each attention's keys and values."""


class FeedForward(nn.Module):
    """W2 activation(W1 x + b1) + b2 (equation 2). (N, D) -> (N, D)"""

    def __init__(self, config: Config):
        super().__init__()
        self.inner, self.outer = nn.Linear(config.width, config.ffn), nn.Linear(config.ffn, config.width)
        self.activation, self.dropout = ACTIVATIONS[config.activation](), nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.activation(self.inner(x))))


# ---------------------------------------------------------------- how a sublayer is added to its input

Sublayer = Callable[[Tensor], Tensor]


class PostNorm(nn.Module):
    """LN(x + f(x)), the paper's (section 3.1). (N, D) -> (N, D)"""

    def __init__(self, config: Config):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(config.width), nn.Dropout(config.dropout)

    def forward(self, x: Tensor, f: Sublayer) -> Tensor:
        return self.norm(x + self.dropout(f(x)))


class PreNorm(PostNorm):
    """x + f(LN(x)): the gradient reaches every layer along the sum. (N, D) -> (N, D)"""

    def forward(self, x: Tensor, f: Sublayer) -> Tensor:
        return x + self.dropout(f(self.norm(x)))


class DeepNorm(PostNorm):
    """LN(alpha x + f(x)) (arXiv 2203.00555, equation of figure 2). (N, D) -> (N, D)"""

    def __init__(self, config: Config, alpha: float):
        super().__init__(config)
        self.alpha = alpha

    def forward(self, x: Tensor, f: Sublayer) -> Tensor:
        return self.norm(self.alpha * x + self.dropout(f(x)))


def deepnorm(depths: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(alpha, beta) of the encoder and of the decoder, for N and M layers (arXiv 2203.00555, figure 2)."""
    n, m = depths
    mixed = (n**4 * m) ** (1 / 16)
    return (0.81 * mixed, 0.87 / mixed), ((3 * m) ** 0.25, (12 * m) ** -0.25)


# ---------------------------------------------------------------- layers and stacks (section 3.1)

Residual = Callable[[Config], nn.Module]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward. (M, D) -> (M, D)"""

    def __init__(self, config: Config, residual: Residual):
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_residual, self.feed_forward_residual = residual(config), residual(config)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = self.attention_residual(x, lambda y: self.attention(y, y, attend))
        return self.feed_forward_residual(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, feed-forward. (N, D), (M, D) -> (N, D)"""

    def __init__(self, config: Config, residual: Residual):
        super().__init__()
        self.attention, self.cross_attention = Attention(config), Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_residual, self.cross_attention_residual = residual(config), residual(config)
        self.feed_forward_residual = residual(config)

    def forward(self, x: Tensor, memory: Memory, attend: Attend, attend_memory: Attend) -> Tensor:
        x = self.attention_residual(x, lambda y: self.attention(y, y, attend))
        x = self.cross_attention_residual(x, lambda y: self.cross_attention(y, memory, attend_memory))
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """Layers, each reading the one before. (N, D) and what the layers read besides -> (N, D)"""

    def __init__(self, config: Config, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *context: Memory | Attend) -> Tensor:
        for layer in self.layers:
            x = layer(x, *context)
        return x


class NormedStack(Stack):
    """Layers whose sum is normalised at the end, as pre-LN needs. (N, D) -> (N, D)"""

    def __init__(self, config: Config, layers: list[nn.Module]):
        super().__init__(config, layers)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, *context: Memory | Attend) -> Tensor:
        return self.norm(super().forward(x, *context))


class LinearCombinationStack(Stack):
    """DLCL: layer l + 1 reads sum_k W[l, k] LN_k(y_k) over the input y_0 and the outputs y_1 ... y_l of all layers so
    far; what comes after the last layer is such a sum too (arXiv 1906.01787, equations 6 and 7, pre-norm). The weights
    start as averages. (N, D) -> (N, D)"""

    def __init__(self, config: Config, layers: list[nn.Module]):
        super().__init__(config, layers)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(len(layers) + 1))
        count = torch.arange(1, len(layers) + 2)
        self.mix = nn.Parameter(torch.ones(len(count), len(count)).tril() / count[:, None])

    def combine(self, normed: list[Tensor]) -> Tensor:
        """What the next layer reads, given the normalised outputs so far."""
        weights = self.mix[len(normed) - 1].unbind()
        return torch.stack([weight * y for weight, y in zip(weights, normed)]).sum(0)

    def forward(self, x: Tensor, *context: Memory | Attend) -> Tensor:
        normed = [self.norms[0](x)]
        for norm, layer in zip(list(self.norms)[1:], self.layers):
            normed.append(norm(layer(self.combine(normed), *context)))
        return self.combine(normed)


Style = tuple[Callable[[Config, int], nn.Module], type[Stack]]
STYLES: dict[str, Style] = {
    "post": (lambda config, side: PostNorm(config), Stack),
    "pre": (lambda config, side: PreNorm(config), NormedStack),
    "dlcl": (lambda config, side: PreNorm(config), LinearCombinationStack),
    "deepnorm": (lambda config, side: DeepNorm(config, deepnorm(config.depths)[side][0]), Stack),
}
"""By norm: the residual of a layer of the encoder (side 0) or the decoder (side 1), and the stack."""


# ---------------------------------------------------------------- the whole


class Transformer(nn.Module):
    """Encoder and decoder around one embedding, which is source's, target's and softmax's (section 3.4).

    `model(src, tgt)` reads the source and the target so far, beginning with `config.begin`, and gives the logits of the
    token after each target token. `packed` gives those of real tokens alone, which is what training needs.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_bias else None
        self.head, self.dropout = TiedHead(), nn.Dropout(config.dropout)
        residual, stack = STYLES[config.norm]
        encoder, decoder = config.depths
        self.encoder = stack(config, [EncoderLayer(config, lambda c: residual(c, 0)) for _ in range(encoder)])
        self.decoder = stack(config, [DecoderLayer(config, lambda c: residual(c, 1)) for _ in range(decoder)])
        self.initialise()

    def initialise(self) -> None:
        """Embeddings N(0, 1/D), so that they have unit variance after scaling; Xavier for the rest, biases 0. DeepNorm
        scales the weights of values, outputs and feed-forward by beta."""
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.config.norm == "deepnorm":
            for side, (_, beta) in zip((self.encoder, self.decoder), deepnorm(self.config.depths)):
                for name, module in side.named_modules():
                    if name.endswith((".value", ".out", ".inner", ".outer")) and isinstance(module, nn.Linear):
                        nn.init.xavier_uniform_(module.weight, gain=beta)

    def embed(self, ids: Int[Tensor, "N"], places: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """Embeddings times sqrt(D), plus positions (sections 3.4, 3.5)."""
        config = self.config
        check_ids(ids, config.vocab_size)
        first = config.padding + 1 if config.positions == "fairseq" else 0
        x = self.embedding(ids) * math.sqrt(config.width)
        return self.dropout(x + sinusoids(places + first, config.width, config.positions).to(x.dtype))

    def cross_attentions(self) -> list[Attention]:
        """The decoder's attentions to the source, layer by layer."""
        return [layer.cross_attention for layer in self.decoder.layers if isinstance(layer, DecoderLayer)]

    def logits(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Scores against the rows of the embedding."""
        return self.head(x, self.embedding.weight, self.output_bias)

    def encode(
        self, src: Int[Tensor, "B S"], src_mask: Bool[Tensor, "B S"] | None = None
    ) -> tuple[Float[Tensor, "M D"], Packing]:
        """The encoder's output for the source's real tokens, and where they lie."""
        packing = _packing(src, src_mask)
        x = self.embed(packing.pack(src), packing.place)
        return self.encoder(x, PackedAttention(packing)), packing

    def decode(
        self,
        tgt: Int[Tensor, "B T"],
        memory: Float[Tensor, "M D"],
        source: Packing,
        tgt_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "N D"], Packing]:
        """The decoder's output for the target's real tokens, and where they lie."""
        packing = _packing(tgt, tgt_mask)
        x = self.embed(packing.pack(tgt), packing.place)
        return self.decoder(x, memory, PackedAttention(packing, causal=True), PackedAttention(packing, source)), packing

    def packed(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        src_mask: Bool[Tensor, "B S"] | None = None,
        tgt_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "N V"], Packing]:
        """Logits after each of the N real target tokens, and where they lie: `packing.pack(labels)` has their order.

        Masks are True at tokens, which stand at the beginning of each row; None: every place holds one.
        """
        memory, source = self.encode(src, src_mask)
        x, packing = self.decode(tgt, memory, source, tgt_mask)
        return self.logits(x), packing

    def forward(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        src_mask: Bool[Tensor, "B S"] | None = None,
        tgt_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits after each target token; 0 where there is none. Masks as for `packed`."""
        logits, packing = self.packed(src, tgt, src_mask, tgt_mask)
        return packing.unpack(logits, longest=tgt.shape[1])

    def generate(
        self,
        src: Int[Tensor, "B S"],
        src_mask: Bool[Tensor, "B S"] | None = None,
        *,
        beam: int = 4,
        length_penalty: float = 0.6,
        penalty: Penalty = "length",
        max_length: int | None = None,
    ) -> list[list[Hypothesis]]:
        """The likeliest translations of each sentence, best first: see `beam.search`."""
        with asked(self):
            return search(
                self, src, src_mask, beam=beam, length_penalty=length_penalty, penalty=penalty, max_length=max_length
            )

    @torch.no_grad()
    def attention(self, src: Int[Tensor, "S"], tgt: Int[Tensor, "T"]) -> Float[Tensor, "L H T S"]:
        """The weights with which each decoder layer's heads look from each target token at the source, for drawing."""
        seen: list[Tensor] = []

        def look(attention: nn.Module, inputs: tuple[Tensor, Tensor, Attend]) -> None:
            assert isinstance(attention, Attention)
            q, k = attention.heads(attention.query(inputs[0])), attention.heads(attention.key(inputs[1]))
            scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
            seen.append(scores.float().softmax(-1))

        handles = [cross.register_forward_pre_hook(look) for cross in self.cross_attentions()]
        try:
            self.packed(src[None], tgt[None])
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(seen)


def _packing(ids: Tensor, mask: Tensor | None) -> Packing:
    if mask is not None:
        return Packing.of(mask)
    return Packing(torch.full((ids.shape[0],), ids.shape[1]), device=ids.device)


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes: (2, 9) source ids, (2, 7) target ids."""
    ids = torch.arange(32) % config.vocab_size
    return ids[:18].view(2, 9), ids[18:].view(2, 7)


sizes = {
    "transformer-base": Config(),
    "transformer-big": Config(width=1024, ffn=4096, num_heads=16, dropout=0.3),
}


def from_marian(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Marian's shared embedding under its three names as one, its computed positions left out, its bias as a vector."""
    copies = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    kept = {n: t for n, t in tensors.items() if n not in copies and not n.endswith("embed_positions.weight")}
    if "final_logits_bias" in kept:
        kept["final_logits_bias"] = kept["final_logits_bias"].flatten()
    return kept


CONVERT = {"transformers": from_marian}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "transformers": (
        (r"^final_logits_bias$", "output_bias"),
        (r"^model\.shared\.", "embedding."),
        (r"^model\.", ""),
        (r"\.self_attn_layer_norm\.", ".attention_residual.norm."),
        (r"\.encoder_attn_layer_norm\.", ".cross_attention_residual.norm."),
        (r"\.final_layer_norm\.", ".feed_forward_residual.norm."),
        (r"\.self_attn\.", ".attention."),
        (r"\.encoder_attn\.", ".cross_attention."),
        (r"\.q_proj\.", ".query."),
        (r"\.k_proj\.", ".key."),
        (r"\.v_proj\.", ".value."),
        (r"\.out_proj\.", ".out."),
        (r"\.fc1\.", ".feed_forward.inner."),
        (r"\.fc2\.", ".feed_forward.outer."),
    )
}
