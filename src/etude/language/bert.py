"""BERT: a Transformer encoder that reads a sentence from both sides, pre-trained by filling in words that were hidden.

Paper: Devlin et al., 2018, arXiv 1810.04805 (https://arxiv.org/abs/1810.04805). Sentence embeddings: the mean over
tokens, of length one (Reimers and Gurevych, 2019, arXiv 1908.10084). MiniLM: Wang et al., 2020, arXiv 2002.10957.
Reference: transformers' BertModel, BertForMaskedLM and BertForSequenceClassification; equal at 1e-5 relative in fp32,
gradients too (live against version 5, by golden file against 5.18), also on the weights of all-MiniLM-L6-v2.

Padding is never computed with: sentences are laid end to end, and what a padded place answers is zero.

Shapes: B sentences, T places of a padded batch, N tokens in all without padding, D width, H heads, d = D / H,
F width of the feed-forward layer, V vocabulary, K labels, M masked tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.errors import RefusedError
from etude.nn.dropout import Dropout
from etude.nn.ids import check_ids
from etude.nn.packing import PackedAttention, Packing

Ids = Int[Tensor, "B T"]
Mask = Bool[Tensor, "B T"] | Int[Tensor, "B T"]
"""True, or 1, at tokens."""
EPS = 1e-12
"""Of all layer normalisations."""
STD = 0.02
"""Of the initial weights (section A.2 gives none; the authors' code does)."""


@dataclass(frozen=True)
class Dimensions:
    """What all models here have in common."""

    vocab_size: int = 28_996
    """Tokens: 28,996 in the published cased vocabulary, 30,522 in the uncased."""
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    ffn: int = 3072
    """Width of the layer between the two feed-forward products."""
    positions: int = 512
    """The longest sentence in tokens."""
    segments: int = 2
    """Kinds of segment: the first sentence and the second."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    """The share of attention weights that is dropped."""

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "num_heads", "ffn", "positions", "segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Config(Dimensions):
    def build(self) -> "Bert":
        return Bert(self)


@dataclass(frozen=True)
class ClassifierConfig(Dimensions):
    num_labels: int = 2

    def build(self) -> "BertClassifier":
        return BertClassifier(self)


@dataclass(frozen=True)
class MaskedLMConfig(Dimensions):
    def build(self) -> "BertMaskedLM":
        return BertMaskedLM(self)


@dataclass(frozen=True)
class EmbedderConfig(Dimensions):
    def build(self) -> "BertEmbedder":
        return BertEmbedder(self)


@dataclass(frozen=True)
class Packed:
    """A padded batch without its padding."""

    ids: Int[Tensor, "N"]
    places: Int[Tensor, "N"]
    """Where in its sentence each token stands."""
    segments: Int[Tensor, "N"]
    packing: Packing
    longest: int
    """T."""
    order: Int[Tensor, "B T"] | None = None
    """The place each column came from, where tokens had to be moved to the front of their rows."""

    def unpack(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "B T D"]:
        """Back to where the tokens stood; zeros elsewhere."""
        padded = self.packing.unpack(x, longest=self.longest)
        if self.order is None:
            return padded
        return torch.zeros_like(padded).scatter(1, self.order[:, :, None].expand_as(padded), padded)


def pack(ids: Tensor, mask: Tensor | None, segments: Tensor | None) -> Packed:
    """(B, T) ids, mask (true or 1 at tokens) and segments -> their tokens alone. Padding may stand anywhere; a token's
    position is its place in the row, as in the reference."""
    batch, longest = ids.shape
    segments = torch.zeros_like(ids) if segments is None else segments
    places = torch.arange(longest, device=ids.device).expand_as(ids)
    lengths = ids.new_full((batch,), longest) if mask is None else mask.bool().sum(1)
    order = None
    if mask is not None and not torch.equal(mask.bool(), places < lengths[:, None]):
        order = torch.argsort((~mask.bool()).byte(), dim=1, stable=True)
        ids, places, segments = (x.gather(1, order) for x in (ids, places, segments))
    packing = Packing(lengths)
    return Packed(packing.pack(ids), packing.pack(places), packing.pack(segments), packing, longest, order)


class Embeddings(nn.Module):
    """The sum of a token's, its position's and its segment's vector (figure 2), normalised. (N,) each -> (N, D)"""

    def __init__(self, config: Dimensions):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.segments = nn.Embedding(config.segments, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Tensor, places: Tensor, segments: Tensor) -> Tensor:
        x = self.words(ids) + self.positions(places) + self.segments(segments)
        return self.dropout(self.norm(x))


class Layer(nn.Module):
    """Self-attention, then two products with GELU (by erf) between; after each the sum with what went in, normalised.
    (N, D) -> (N, D)"""

    def __init__(self, config: Dimensions):
        super().__init__()
        if config.width % config.num_heads:
            raise ValueError(f"width {config.width} does not divide into {config.num_heads} heads")
        self.heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        """Queries, keys and values below each other: one product instead of three."""
        self.attended = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width, eps=EPS)
        self.expand = nn.Linear(config.width, config.ffn)
        self.contract = nn.Linear(config.ffn, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "N D"], attention: PackedAttention) -> Float[Tensor, "N D"]:
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)  # (N, H, d) each
        dropout = self.attention_dropout if self.training else 0.0
        heads = attention(q, k, v, dropout=dropout).reshape(x.shape)
        x = self.attention_norm(x + self.dropout(self.attended(heads)))
        return self.norm(x + self.dropout(self.contract(F.gelu(self.expand(x)))))


class Encoder(nn.Module):
    """(B, T) ids; mask, true or 1 at tokens, everywhere by default; segments, 0 by default -> (B, T, D)."""

    ASIDE: ClassVar = {
        "transformers": r"(pooler|masked_lm|next_sentence|classifier)\.",
        "masked-lm": r"masked_lm\.",
    }

    def __init__(self, config: Dimensions):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.longest = config.positions
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.apply(reset_parameters)

    def tokens(self, ids: Tensor, mask: Tensor | None, segments: Tensor | None) -> tuple[Tensor, Packed]:
        """As the forward, but the tokens alone: (N, D), and where they stand."""
        self.check(ids)
        batch = pack(ids, mask, segments)
        x = self.embeddings(batch.ids, batch.places, batch.segments)
        attention = PackedAttention(batch.packing)
        for layer in self.layers:
            x = layer(x, attention)
        return x, batch

    def check(self, ids: Tensor) -> None:
        """ValueError for more places than there are positions, and ids that are not in the vocabulary."""
        if ids.shape[1] > self.longest:
            raise ValueError(
                f"{ids.shape[1]} tokens are too many: the model has {self.longest} positions; cut the text"
            )
        if ids.numel() == 0:
            raise ValueError("there are no tokens: an empty sentence is [CLS] [SEP] at least")
        check_ids(ids, self.vocab_size)

    def forward(self, ids: Ids, mask: Mask | None = None, segments: Ids | None = None) -> Float[Tensor, "B T D"]:
        hidden, batch = self.tokens(ids, mask, segments)
        return batch.unpack(hidden)


class Bert(nn.Module):
    """The published model: the encoder, and the pooler that classifiers read. (B, T) ids -> (B, T, D) hidden"""

    RENAME: ClassVar = {"transformers": ((r"^(embeddings|layers)\.", r"encoder.\1."),)}
    ASIDE: ClassVar = {"transformers": r"(masked_lm|next_sentence|classifier)\."}

    def __init__(self, config: Dimensions):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.width, config.width)
        self.pooler.apply(reset_parameters)

    def forward(self, ids: Ids, mask: Mask | None = None, segments: Ids | None = None) -> Float[Tensor, "B T D"]:
        return self.encoder(ids, mask, segments)

    def pooled(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """tanh(W h + b) of each sentence's first token, [CLS]: (B, T) -> (B, D)."""
        hidden, batch = self.encoder.tokens(ids, mask, segments)
        first = hidden[torch.tensor(batch.packing.start, device=hidden.device)]
        return torch.tanh(self.pooler(first))


class BertClassifier(nn.Module):
    """Which of K kinds a sentence, or a pair of them, is (figure 4 a, b). (B, T) ids -> (B, K) logits"""

    RENAME: ClassVar = {
        "transformers": (
            (r"^(embeddings|layers)\.", r"bert.encoder.\1."),
            (r"^pooler\.", "bert.pooler."),
            (r"^classifier\.", "head."),
        )
    }

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.bert = Bert(config)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.width, config.num_labels)
        self.head.apply(reset_parameters)

    def forward(self, ids: Ids, mask: Mask | None = None, segments: Ids | None = None) -> Float[Tensor, "B K"]:
        return self.head(self.dropout(self.bert.pooled(ids, mask, segments)))


class MaskedLMHead(nn.Module):
    """Scores of all tokens against the embedding's own rows, which it does not hold. (M, D), (V, D) -> (M, V)"""

    def __init__(self, config: Dimensions):
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(x))), words, self.bias)


class BertMaskedLM(nn.Module):
    """What stands at each place (section 3.1, task 1). (B, T) ids -> (B, T, V) logits, zeros at padding; with `chosen`
    (B, T), true at the M tokens that are asked for, (M, V) in the order of reading: nothing else is computed."""

    RENAME: ClassVar = {"transformers": ((r"^(embeddings|layers)\.", r"encoder.\1."), (r"^masked_lm\.", "head."))}
    ASIDE: ClassVar = {"transformers": r"(pooler|next_sentence)\."}

    def __init__(self, config: MaskedLMConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.encoder = Encoder(config)
        self.head = MaskedLMHead(config)
        self.head.apply(reset_parameters)

    def forward(
        self, ids: Ids, mask: Mask | None = None, segments: Ids | None = None, *, chosen: Mask | None = None
    ) -> Float[Tensor, "B T V"] | Float[Tensor, "M V"]:
        hidden, batch = self.encoder.tokens(ids, mask, segments)
        words = self.encoder.embeddings.words.weight
        if chosen is None:
            return batch.unpack(self.head(hidden, words))
        return self.head(batch.unpack(hidden)[chosen.bool()], words)


class BertEmbedder(nn.Module):
    """A sentence as a point: the mean of its tokens' hidden vectors, of length one, so that the inner product of two is
    their cosine. (B, T) ids -> (B, D)"""

    RENAME: ClassVar = {"transformers": ((r"^(embeddings|layers)\.", r"encoder.\1."),)}
    ASIDE: ClassVar = {"transformers": r"(pooler|masked_lm|next_sentence|classifier)\."}

    def __init__(self, config: EmbedderConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.encoder = Encoder(config)

    def forward(self, ids: Ids, mask: Mask | None = None, segments: Ids | None = None) -> Float[Tensor, "B D"]:
        hidden, batch = self.encoder.tokens(ids, mask, segments)
        total = hidden.new_zeros(len(ids), hidden.shape[1]).index_add(0, batch.packing.sequence, hidden)
        return F.normalize(total / batch.packing.lengths[:, None], dim=1)


def reset_parameters(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero; layer normalisations begin as they are made, at one and zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def example(config: Dimensions) -> tuple[Tensor, ...]:
    """Inputs that the model takes: (2, 12) ids."""
    return (torch.arange(24).view(2, 12) % config.vocab_size,)


UNCASED = 30_522
LARGE: dict[str, int] = {"width": 1024, "depth": 24, "num_heads": 16, "ffn": 4096}
MINILM: dict[str, int] = {"vocab_size": UNCASED, "width": 384, "depth": 6, "num_heads": 12, "ffn": 1536}

sizes = {
    "bert-base": Config(),
    "bert-base-uncased": Config(vocab_size=UNCASED),
    "bert-large": Config(**LARGE),
    "bert-large-uncased": Config(vocab_size=UNCASED, **LARGE),
    "bert-minilm": Config(**MINILM),
    "bert-base-classifier": ClassifierConfig(),
    "bert-large-classifier": ClassifierConfig(**LARGE),
    "bert-minilm-classifier": ClassifierConfig(**MINILM),
    "bert-base-masked-lm": MaskedLMConfig(),
    "bert-large-masked-lm": MaskedLMConfig(**LARGE),
    "bert-minilm-embedder": EmbedderConfig(**MINILM),
}


def from_transformers(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values joined; TensorFlow's names gamma and beta, which the first checkpoints kept, made
    torch's; buffers of positions and copies of tied weights dropped. RefusedError where what should be tied is not."""
    if not any(name.startswith("embeddings.") for name in theirs):
        theirs = {name.removeprefix("bert."): tensor for name, tensor in theirs.items()}
    ours = {}
    for name, tensor in theirs.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name in COPIES:
            original = theirs.get(COPIES[name])
            if original is not None and not torch.equal(original, tensor):
                raise RefusedError(f"{name} is not tied to {COPIES[name]}, as BERT's are; this is another model")
            if original is not None:
                continue
            name = COPIES[name]
        if name in ("embeddings.position_ids", "embeddings.token_type_ids"):
            continue
        ours[name] = tensor
    for name in [name for name in ours if ".self.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in ours for part in parts):
            ours[name.replace(".query.", ".qkv.")] = torch.cat([ours.pop(part) for part in parts])
    return ours


COPIES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Names under which checkpoints repeat a weight -> its own name."""

RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "transformers": (
        (r"^embeddings\.word_embeddings\.", "embeddings.words."),
        (r"^embeddings\.position_embeddings\.", "embeddings.positions."),
        (r"^embeddings\.token_type_embeddings\.", "embeddings.segments."),
        (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.self\.qkv\.", ".qkv."),
        (r"\.attention\.output\.dense\.", ".attended."),
        (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
        (r"\.intermediate\.dense\.", ".expand."),
        (r"\.output\.dense\.", ".contract."),
        (r"\.output\.LayerNorm\.", ".norm."),
        (r"^pooler\.dense\.", "pooler."),
        (r"^cls\.predictions\.transform\.dense\.", "masked_lm.transform."),
        (r"^cls\.predictions\.transform\.LayerNorm\.", "masked_lm.norm."),
        (r"^cls\.predictions\.bias$", "masked_lm.bias"),
        (r"^cls\.seq_relationship\.", "next_sentence."),
    ),
    # a run of bert.mlm, whose encoder another model begins with: part "bert.encoder"
    "masked-lm": ((r"^encoder\.", ""), (r"^head\.", "masked_lm.")),
}
"""What is common to all models here; each class says in its own RENAME where in it the parts stand, and in ASIDE which
parts of a published file belong to other models and are left aside."""

CONVERT = {"transformers": from_transformers}
