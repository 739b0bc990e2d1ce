"""Beam search for the Transformer: the likeliest translations, several at a time (Wu et al., 2016, arXiv 1609.08144).

Reference: transformers 5.23 `MarianMTModel.generate` with its default early_stopping=False: the same tokens. Of each
sentence the `beam` likeliest unfinished translations are continued by one token. Of the 2 `beam` likeliest of these,
those among the first `beam` that end are finished, and the likeliest that do not end go on. A sentence is done when it
has `beam` finished translations and the best unfinished one, at its present length, scores no better than the worst of
them; or at its greatest length, where only the end may follow. Done sentences leave the batch.

What was computed is kept: keys and values of the decoder's self-attention are reordered as translations fork, those of
the source are computed once a sentence and shared by its translations.

Shapes: B sentences, K translations of each (the beam), S source tokens, D width, H heads, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from etude.language.transformer import Transformer

Penalty = Literal["length", "gnmt"]

PENALTIES: dict[str, Callable[[Tensor | float, float], Tensor | float]] = {
    "length": lambda length, alpha: length**alpha,
    "gnmt": lambda length, alpha: ((5 + length) / 6) ** alpha,
}
"""What the log-probability of a translation of `length` tokens, the end among them, is divided by. "length" is that of
fairseq, transformers and CTranslate2; "gnmt" is equation 14 of arXiv 1609.08144, which the paper of the Transformer
used. The figure 0.6 is quoted of both, and does not mean the same."""
NEVER = -1.0e9


@dataclass(frozen=True)
class Hypothesis:
    """A translation."""

    ids: tuple[int, ...]
    """Its tokens; the end, which is the last, is among them."""
    score: float
    """Its log-probability, divided by the length penalty."""


class _History:
    """Keys and values of the target so far, of B K rows in each layer: what `Attention` attends with while decoding."""

    def __init__(self, layers: int, rows: int, heads: int, room: int, width: int, like: Tensor):
        shape = (layers, rows, heads, room, width)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = self.layer = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
        """(B K, H, D/H) each -> (B K, H, D/H); called once a layer, in their order."""
        keys, values = self.keys[self.layer], self.values[self.layer]
        keys[:, :, self.length], values[:, :, self.length] = k, v
        end = self.length + 1
        self.layer += 1
        if self.layer == len(self.keys):
            self.layer, self.length = 0, end
        return _attend(q[:, :, None], keys[:, :, :end], values[:, :, :end])[:, :, 0]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if torch.equal(rows, torch.arange(self.keys.shape[1], device=rows.device)):
            return
        for cache in (self.keys, self.values):  # as many rows or fewer: in place, and of the filled part alone
            filled = cache[:, :, :, : self.length].index_select(1, rows)
            cache[:, : len(rows), :, : self.length] = filled
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]


class _Source:
    """How the K translations of each sentence look at its source: (B K, H, D/H) queries, (B, H, S, D/H) keys."""

    def __init__(self, mask: Tensor):
        self.mask = mask
        """(B, 1, 1, S), True at tokens."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
        batch, beam = len(k), len(q) // len(k)
        grouped = q.unflatten(0, (batch, beam)).transpose(1, 2)
        return _attend(grouped, k, v, self.mask).transpose(1, 2).flatten(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D/H)) v, written out: torch's fused kernel takes half as long again for so few queries."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, NEVER)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


@torch.no_grad()
def search(
    model: "Transformer",
    src: Tensor,
    src_mask: Tensor | None = None,
    *,
    beam: int = 4,
    length_penalty: float = 0.6,
    penalty: Penalty = "length",
    max_length: int | None = None,
) -> list[list[Hypothesis]]:
    """(B, S) source ids, (B, S) mask -> the translations of each sentence, best first, at most `beam` of them.

    `max_length`: the most tokens of a translation, its end among them; None: each source's length and 50 more. Beam 1
    is greedy search. Neither padding nor the begin token is ever written.
    """
    if beam < 1:
        raise ValueError(f"beam is {beam}; at least one translation must be followed")
    if penalty not in PENALTIES:
        raise ValueError(f"penalty {penalty!r} is not one of {', '.join(PENALTIES)}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; the end alone takes 1")
    config, device, batch = model.config, src.device, len(src)
    if config.vocab_size < 2 * beam + 2:
        raise ValueError(f"a beam of {beam} needs {2 * beam + 2} tokens, the vocabulary has {config.vocab_size}")
    memory, packing = model.encode(src, src_mask)
    limits = torch.full_like(packing.lengths, max_length) if max_length else packing.lengths + 50
    longest = int(limits.max())

    def laid_out(x: Tensor) -> Tensor:
        return packing.unpack(x).transpose(1, 2).contiguous()

    crosses = model.cross_attentions()
    known: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for cross in crosses:
        k, v = cross.keys_values(memory)
        known[cross] = laid_out(k), laid_out(v)
    look = _Source((torch.arange(packing.longest, device=device) < packing.lengths[:, None])[:, None, None])
    like = known[crosses[0]][0]
    history = _History(len(crosses), batch * beam, config.num_heads, longest, like.shape[-1], like)

    divide = PENALTIES[penalty]
    running = torch.full((batch, beam), NEVER, device=device)
    running[:, 0] = 0.0
    tokens = torch.full((batch, beam, longest), config.padding, device=device)
    done_scores = torch.full((batch, beam), NEVER, device=device)
    done_tokens = torch.full((batch, beam, longest), config.padding, device=device)
    sentences = torch.arange(batch, device=device)
    last = torch.full((batch * beam,), config.begin, device=device)
    answers: list[list[Hypothesis]] = [[] for _ in range(batch)]
    forbidden = torch.tensor(sorted({config.padding, config.begin} - {config.end}), device=device)
    for step in range(longest):
        x = model.embed(last, last.new_full((len(last),), step))
        x = model.decoder(x, known, history, look)
        logits = model.logits(x).float().log_softmax(-1)
        logits[:, forbidden] = NEVER
        scores = (logits + running.flatten()[:, None]).unflatten(0, (-1, beam))
        final = limits == step + 1
        if bool(final.any()):
            ends = scores[:, :, config.end].clone()
            scores[final] = NEVER
            scores[:, :, config.end] = ends
        top, places = scores.flatten(1).topk(2 * beam, dim=1)
        parents, chosen = places // config.vocab_size, places % config.vocab_size
        ended = (chosen == config.end) & (top > NEVER / 2)
        candidates = tokens.gather(1, parents[:, :, None].expand(-1, -1, longest))
        candidates[:, :, step] = chosen

        first = ended & (torch.arange(2 * beam, device=device) < beam)
        normed = torch.where(first, top / divide(float(step + 1), length_penalty), NEVER)
        done_scores, best = torch.cat([done_scores, normed], 1).topk(beam, dim=1)
        pool = torch.cat([done_tokens, candidates], 1)
        done_tokens = pool.gather(1, best[:, :, None].expand(-1, -1, longest))

        running, kept = top.masked_fill(chosen == config.end, NEVER).topk(beam, dim=1)
        tokens = candidates.gather(1, kept[:, :, None].expand(-1, -1, longest))
        rows = parents.gather(1, kept) + torch.arange(len(running), device=device)[:, None] * beam

        full = done_scores[:, -1] > NEVER / 2
        over = full & (running[:, 0] / divide(float(step + 1), length_penalty) <= done_scores[:, -1])
        over = over | final
        if bool(over.any()):
            for i in over.nonzero()[:, 0].tolist():
                answers[int(sentences[i])] = _hypotheses(done_scores[i], done_tokens[i], config.end)
            go_on = (~over).nonzero()[:, 0]
            if not len(go_on):
                break
            running, tokens, rows = running[go_on], tokens[go_on], rows[go_on]
            done_scores, done_tokens = done_scores[go_on], done_tokens[go_on]
            sentences, limits = sentences[go_on], limits[go_on]
            known = {cross: (k[go_on], v[go_on]) for cross, (k, v) in known.items()}
            look = _Source(look.mask[go_on])
        history.select(rows.flatten())
        last = tokens[:, :, step].flatten()
    return answers


def _hypotheses(scores: Tensor, tokens: Tensor, end: int) -> list[Hypothesis]:
    found = []
    for score, row in zip(scores.tolist(), tokens.tolist()):
        if score > NEVER / 2:
            found.append(Hypothesis(tuple(row[: row.index(end) + 1]), score))
    return found
