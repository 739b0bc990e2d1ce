"""GPT: a decoder-only Transformer that predicts the next token (Radford et al., 2018 and 2019; Brown et al., 2020).

Reference: transformers 5.23 `GPT2LMHeadModel` (layout "transformers"): equal outputs to 1e-5 relative in fp32.
    GPT-2    "Language Models are Unsupervised Multitask Learners": LN before each sublayer and once at the end,
             residual projections scaled by 1/sqrt(2 L) at initialisation, context 1024
    GPT-3    arXiv 2005.14165, table 2.1, with two of its entries corrected: 16 heads at 1.3B (24 do not divide 2048),
             width 5120 at 13B (5140 is not 40 heads of 128). Context 2048. Every second layer is "locally banded"
             (Child et al., 2019, arXiv 1904.10509); the band was never published: `window`, by default none.

Shapes: B texts, T tokens read now, S tokens read in all, D width, H heads, V tokens in the vocabulary, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.nn import generation
from etude.nn.attention import attend
from etude.nn.ids import asked, check_ids
from etude.nn.tied import TiedHead


@dataclass(frozen=True)
class Config:
    vocab_size: int = 50_257
    """0: as many as the text's tokens, for recipes."""
    context: int = 1024
    """The most tokens that are read at once."""
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    dropout: float = 0.1
    """On embeddings, attention weights and each sublayer's output."""
    window: int = 0
    """In every second layer a token sees only so many, itself among them; 0: all before it, in all layers."""

    def __post_init__(self):
        for name in ("context", "width", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("vocab_size", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")

    def build(self) -> "GPT":
        if not self.vocab_size:
            raise ValueError("vocab_size is 0; a model needs to know how many tokens there are")
        return GPT(self)


class Cache:
    """Keys and values of what was read: preallocated, (L, B, H, `room`, D/H) each, of which `length` are filled.

    `padding` (B,) says how many places at the beginning of each text hold no token (None: none).
    """

    def __init__(
        self,
        config: Config,
        batch: int,
        room: int,
        *,
        padding: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.depth, batch, config.num_heads, room, config.width // config.num_heads)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.padding, self.length = padding, 0

    @property
    def room(self) -> int:
        """Places in all."""
        return self.keys.shape[3]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, H, T, D/H) of one layer; all of its keys and values so far (B, H, S, D/H), as views."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention. (B, T, D) -> (B, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.qkv, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """`mask` (B, 1, T, S) or (T, S) is True where a token looks; None: at all before it, and itself."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        y = attend(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            mask=mask,
            causal=mask is None and q.shape[2] > 1,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W2 gelu(W1 x), four times as wide inside, GELU by its tanh form. (B, T, D) -> (B, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        self.inner, self.outer = nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x), approximate="tanh"))


class Block(nn.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)). (B, T, D) -> (B, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(config.width), Attention(config)
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(config.width), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache, layer))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT(nn.Module):
    """(B, T) ids -> (B, T, V) logits of the token after each; the head's weights are the embedding's."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = TiedHead()
        self.initialise()

    def initialise(self) -> None:
        """N(0, 0.02), the projections onto the residual stream N(0, 0.02 / sqrt(2 L)); biases 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                onto = name.endswith((".out", ".outer"))
                nn.init.normal_(module.weight, std=0.02 / (2 * self.config.depth) ** 0.5 if onto else 0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids: Int[Tensor, "B T"], cache: Cache | None = None) -> Float[Tensor, "B T V"]:
        """Logits after each token. With a cache, the ids follow what it holds, and it holds them too afterwards.
        ValueError where there are more tokens than the context, or the cache, has room for."""
        return self.head(self.hidden(ids, cache), self.embedding.weight)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads: (B, T, D), of the last block's norm."""
        if not ids.shape[1]:
            raise ValueError("there are no tokens to read; at least one is needed")
        check_ids(ids, self.config.vocab_size)
        past, padding = (cache.length, cache.padding) if cache is not None else (0, None)
        end, room = past + ids.shape[1], self.config.context if cache is None else cache.room
        if end > min(room, self.config.context):
            raise ValueError(f"{end:,} tokens do not fit into {min(room, self.config.context):,} places")
        places = torch.arange(past, end, device=ids.device)
        own = places if padding is None else (places - padding[:, None]).clamp(min=0)
        x = self.dropout(self.embedding(ids) + self.positions(own))
        masks = self.masks(places, padding)
        for layer, block in enumerate(self.blocks):
            x = block(x, masks[layer % 2], cache, layer)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def masks(self, places: Tensor, padding: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Where tokens at `places` (T,) may look, in dense layers and in banded ones: (T, S), with `padding`
        (B, 1, T, S), or None where it is at all before them."""
        past, end, window = int(places[0]), int(places[-1]) + 1, self.config.window
        plain = padding is None and (past == 0 or len(places) == 1)
        banded = 0 < window < end
        if plain and not banded:
            return None, None
        keys = torch.arange(end, device=places.device)
        look = keys <= places[:, None]
        if padding is not None:  # a place without a token looks at itself, since somewhere it must
            look = look & ((keys >= padding[:, None])[:, None, None] | (keys == places[:, None]))
        near = look & (keys > places[:, None] - window) if banded else look
        return None if plain else look, near

    def read(self, ids: Int[Tensor, "B T"], state: Cache | None = None) -> tuple[Float[Tensor, "B 1 V"], Cache]:
        """Logits after the last token, with a cache that is made where there is none, of the whole context."""
        if state is None:
            state = self.cache(ids.shape[0])
        return self.head(self.hidden(ids, state)[:, -1:], self.embedding.weight), state

    def cache(self, batch: int, room: int | None = None, *, padding: Tensor | None = None) -> Cache:
        """An empty cache for so many texts, where the weights are and of their type (of autocast's, within it)."""
        like = self.embedding.weight
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        room = min(room or self.config.context, self.config.context)
        return Cache(self.config, batch, room, padding=padding, device=like.device, dtype=dtype)

    @torch.no_grad()
    def generate(
        self,
        ids: Int[Tensor, "B T"],
        max_new_tokens: int,
        *,
        lengths: Int[Tensor, "B"] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        end: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Int[Tensor, "B N"]:
        """The tokens that follow, at most `max_new_tokens` of them: how they are chosen says
        `generation.probabilities`; by default always the likeliest.

        `lengths`: the prompts' own lengths, where they are padded on the left. `seed`: one for all prompts, so that
        each is gone on from as if it were alone, or one each, for other continuations of one prompt. After a text's
        `end` token its row holds that token again; where all have ended, N is smaller. ValueError where prompt and
        tokens exceed the context.
        """
        made, over = [], torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        for chosen in self.stream(
            ids,
            max_new_tokens,
            lengths=lengths,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ):
            if end is not None:
                chosen = chosen.masked_fill(over, end)
                over = over | (chosen == end)
            made.append(chosen)
            if end is not None and bool(over.all()):
                break
        return torch.stack(made, 1) if made else ids[:, :0]

    def stream(
        self,
        ids: Int[Tensor, "B T"],
        max_new_tokens: int,
        *,
        lengths: Int[Tensor, "B"] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[Int[Tensor, "B"]]:
        """`generate`, token by token: the (B,) next ones each time, as soon as they are known."""
        self.check(ids, max_new_tokens, lengths)
        batch, width = ids.shape
        padding = None if lengths is None or bool((lengths == width).all()) else width - lengths
        cache = self.cache(batch, width + max_new_tokens, padding=padding)
        seeds = [seed] * batch if isinstance(seed, int) else list(seed)
        if len(seeds) != batch:
            raise ValueError(f"there are {len(seeds)} seeds for {batch} prompts; one for all, or one each")
        draws = {s: torch.Generator().manual_seed(s) for s in seeds}
        columns = {s: torch.rand(max_new_tokens, generator=g, dtype=torch.float64) for s, g in draws.items()}
        numbers = torch.stack([columns[s] for s in seeds], 1)
        seen = None
        if repetition_penalty != 1:
            places = torch.arange(width, device=ids.device)
            own = torch.ones_like(ids, dtype=torch.bool) if padding is None else places >= padding[:, None]
            seen = torch.zeros(batch, self.config.vocab_size, dtype=torch.bool, device=ids.device)
            seen.index_put_((own.nonzero()[:, 0], ids[own]), torch.tensor(True, device=ids.device))
        steps = generation.write(
            self,
            ids,
            numbers,
            state=cache,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seen=seen,
        )

        def tokens() -> Iterator[Tensor]:
            with asked(self):
                yield from (chosen for chosen, _ in steps)

        return tokens()

    def check(self, ids: Tensor, max_new_tokens: int, lengths: Tensor | None) -> None:
        """ValueError for prompts that cannot be gone on from so far, naming what is wrong with them."""
        batch, width = ids.shape
        if not ids.numel():
            raise ValueError("the prompt is empty; at least one token is needed")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must not be negative")
        if width + max_new_tokens > self.config.context:
            raise ValueError(
                f"a prompt of {width:,} tokens and {max_new_tokens:,} new ones exceed the context of "
                f"{self.config.context:,}"
            )
        check_ids(ids, self.config.vocab_size)
        if lengths is not None and (lengths.shape != (batch,) or bool(((lengths < 1) | (lengths > width)).any())):
            raise ValueError(f"lengths is {lengths.tolist()}; each of {batch} prompts has 1 to {width} tokens")


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes: (2, 16) ids."""
    return (torch.arange(32).view(2, 16) % config.vocab_size,)


sizes = {
    "gpt2": Config(),
    "gpt2-medium": Config(width=1024, depth=24, num_heads=16),
    "gpt2-large": Config(width=1280, depth=36, num_heads=20),
    "gpt2-xl": Config(width=1600, depth=48, num_heads=25),
    "gpt3-125m": Config(context=2048, width=768, depth=12, num_heads=12),
    "gpt3-350m": Config(context=2048, width=1024, depth=24, num_heads=16),
    "gpt3-760m": Config(context=2048, width=1536, depth=24, num_heads=16),
    "gpt3-1.3b": Config(context=2048, width=2048, depth=24, num_heads=16),
    "gpt3-2.7b": Config(context=2048, width=2560, depth=32, num_heads=32),
    "gpt3-6.7b": Config(context=2048, width=4096, depth=32, num_heads=32),
    "gpt3-13b": Config(context=2048, width=5120, depth=40, num_heads=40),
    "gpt3-175b": Config(context=2048, width=12_288, depth=96, num_heads=96),
}


def from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights stored [in, out] transposed; the mask buffers of old files and the head, which is the embedding, left
    out. Names begin with "transformer." or not."""
    kept = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if name != "lm_head.weight" and not name.endswith((".attn.bias", ".attn.masked_bias")):
            stored_in_out = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
            kept[name] = tensor.T if stored_in_out else tensor
    return kept


CONVERT = {"transformers": from_transformers}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "transformers": (
        (r"^wte\.", "embedding."),
        (r"^wpe\.", "positions."),
        (r"^ln_f\.", "norm."),
        (r"^h\.", "blocks."),
        (r"\.ln_1\.", ".attention_norm."),
        (r"\.ln_2\.", ".feed_forward_norm."),
        (r"\.attn\.c_attn\.", ".attention.qkv."),
        (r"\.attn\.c_proj\.", ".attention.out."),
        (r"\.mlp\.c_fc\.", ".feed_forward.inner."),
        (r"\.mlp\.c_proj\.", ".feed_forward.outer."),
    )
}
