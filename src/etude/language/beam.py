"""Beam search with the Transformer's decoder, token by token: greedy where the beam is one.

In each step every hypothesis is continued by every token; of a sentence's 2K best continuations those among the first K
that end are kept as found, and the K best of the others go on. A found hypothesis scores log P / length^alpha
("length": fairseq, transformers, CTranslate2) or log P / ((5 + length) / 6)^alpha ("gnmt": Wu et al., 2016, arXiv
1609.08144, equation 14), with its end counted. A sentence is done when K are found and the best that goes on, scored at
its length so far, is not above the worst of them; or, with `early_stopping`, when K are found. At `max_length` the K
best are taken as they stand. These are the rules of transformers 5.23, whose ids are found alike.

What was computed for earlier tokens is kept, and never moved when hypotheses change places: all K of a sentence write
their keys and values into slots of one cache, and each remembers which slots its own past is in. Attention then goes
over a sentence's slots at once, with a mask. The source's keys and values are there once a sentence, too.

Shapes: B sentences, n of them not done, K hypotheses each, H heads, E width of a head, D width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.language.transformer import Attention, DecoderLayer, Transformer

Penalty = Literal["length", "gnmt"]
PENALTIES = {"length": lambda length: length, "gnmt": lambda length: (5 + length) / 6}
"""By name: what is raised to the power of alpha."""
BEYOND = 50
"""A translation may have so many tokens more than its source (section 6.1)."""


@dataclass(frozen=True)
class Hypothesis:
    ids: list[int]
    """Without the begin token, with the end where it ended by itself."""
    score: float


class _Memory:
    """Keys and values of one decoder layer: of the source (B, H, S, E), and of what was written (B, H, slots, E)."""

    def __init__(self, layer: DecoderLayer, memory: Tensor, unpack: "_Unpack", slots: int):
        cross, own = layer.cross_attention, layer.attention
        keys, values = F.linear(memory, *_joined(cross.key, cross.value)).chunk(2, -1)
        self.keys, self.values = unpack(cross.heads(keys)), unpack(cross.heads(values))
        self.own = _joined(own.query, own.key, own.value)
        batch, heads, _, width = self.keys.shape
        self.written = self.keys.new_empty(2, batch, heads, slots, width)

    def write(self, keys_values: Float[Tensor, "2 n H K E"], slot: int) -> tuple[Tensor, Tensor]:
        """Into the slots from `slot` on; returns all keys and values so far."""
        _, n, _, k, _ = keys_values.shape
        if slot + k > self.written.shape[3]:
            self.written = torch.cat([self.written, torch.empty_like(self.written)], 3)
        self.written[:, :n, :, slot : slot + k] = keys_values
        keys, values = self.written[:, :n, :, : slot + k]
        return keys, values

    def move(self, source: Tensor, target: Tensor, slots: int) -> None:
        """Sentences from places to places."""
        self.written[:, target, :, :slots] = self.written[:, source, :, :slots]
        for kept in (self.keys, self.values):
            kept[target] = kept[source]


def _joined(*layers: nn.Linear) -> tuple[Tensor, Tensor]:
    """The weights and biases of linear layers that read the same, as one layer's."""
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])


class _Unpack:
    """(M, H, E) of packed tokens -> (B, H, S, E)"""

    def __init__(self, packing):
        self.packing = packing

    def __call__(self, x: Tensor) -> Tensor:
        return self.packing.unpack(x).transpose(1, 2).contiguous()


class Decoding:
    """The decoder at one place of n sentences' hypotheses; the source is encoded once."""

    def __init__(self, model: Transformer, src: Tensor, src_mask: Tensor | None, slots: int):
        self.model = model
        memory, packing = model.encode(src, src_mask)
        self.lengths = packing.lengths
        unpack = _Unpack(packing)
        self.memories = {
            layer: _Memory(layer, memory, unpack, slots)
            for layer in model.decoder.layers
            if isinstance(layer, DecoderLayer)
        }
        there = torch.arange(packing.longest, device=src.device) < self.lengths[:, None]
        self.there = None if bool(there.all()) else _additive(there, memory.dtype)[:, None, None]
        self.slots = self.place = 0

    def advance(self, ids: Int[Tensor, "n K"], slots: Int[Tensor, "n K T"]) -> Float[Tensor, "n K V"]:
        """Logits after `ids`, the T-th tokens of hypotheses whose pasts are in `slots`, their own slots last."""
        n, k = ids.shape
        seen = torch.zeros(n, k, self.slots + k, dtype=torch.bool, device=ids.device).scatter_(2, slots, True)
        self.seen = _additive(seen, self.model.embedding.weight.dtype)[:, None]
        self.shape = n, k
        x = self.model.embed(ids.flatten(), torch.tensor([self.place], device=ids.device))
        x = self.model.decoder.through(x, self._layer)
        self.slots, self.place = self.slots + k, self.place + 1
        return self.model.logits(x).view(n, k, -1)

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, DecoderLayer)
        x = layer.attention_residual(x, lambda y: self._own(layer, y))
        x = layer.cross_attention_residual(x, lambda y: self._source(layer, y))
        return layer.feed_forward_residual(x, layer.feed_forward)

    def _own(self, layer: DecoderLayer, x: Tensor) -> Tensor:
        memory, attention = self.memories[layer], layer.attention
        heads = F.linear(x, *memory.own).view(*self.shape, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        keys, values = memory.write(heads[1:], self.slots)
        return self._mixed(attention, heads[0], keys, values, self.seen)

    def _source(self, layer: DecoderLayer, x: Tensor) -> Tensor:
        memory, attention, n = self.memories[layer], layer.cross_attention, self.shape[0]
        q = attention.query(x).view(*self.shape, attention.num_heads, -1).transpose(1, 2)
        there = None if self.there is None else self.there[:n]
        return self._mixed(attention, q, memory.keys[:n], memory.values[:n], there)

    def _mixed(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attention.out(mixed.transpose(1, 2).flatten(0, 1).flatten(1))

    def move(self, source: Tensor, target: Tensor) -> None:
        """Sentences from places to places, over those that are done."""
        for memory in self.memories.values():
            memory.move(source, target, self.slots)
        if self.there is not None:
            self.there[target] = self.there[source]


def _additive(mask: Bool[Tensor, "..."], dtype: torch.dtype) -> Tensor:
    """0 where the mask is True, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


@torch.no_grad()
def beam_search(
    model: Transformer,
    src: Int[Tensor, "B S"],
    src_mask: Bool[Tensor, "B S"] | None,
    *,
    beam: int,
    length_penalty: float,
    penalty: Penalty,
    max_length: int | None,
    early_stopping: bool,
) -> list[list[Hypothesis]]:
    """At most `beam` hypotheses a sentence, best first. See `Transformer.generate`."""
    config = model.config
    decoding = Decoding(model, src, src_mask, slots=32 * beam)
    limits = decoding.lengths + BEYOND if max_length is None else torch.full_like(decoding.lengths, max_length)
    forbidden = [token for token in {config.padding, config.begin} if token != config.end]
    found: list[list[Hypothesis]] = [[] for _ in range(len(src))]
    sentences = list(range(len(src)))
    """Which sentence is at each place; those that are done have none."""
    written = src.new_full((len(src), 1, 1), config.begin)
    slots = src.new_empty(len(src), 1, 0)
    totals = torch.zeros(len(src), 1, dtype=torch.float64 if model.embedding.weight.dtype == torch.float64 else None)
    totals = totals.to(src.device)

    for length in range(1, int(limits.max()) + 1):
        n, width = totals.shape
        new = torch.arange(decoding.slots, decoding.slots + width, device=src.device)
        slots = torch.cat([slots, new.expand(n, width)[..., None]], 2)
        logits = decoding.advance(written[:, :, -1], slots).to(totals.dtype)
        best, parents, ids = continuations(logits, totals, 2 * beam, forbidden)
        ended = (ids == config.end) | (limits[:, None] == length)
        scale = PENALTIES[penalty](length) ** length_penalty
        _keep_found(found, sentences, written, best[:, :beam] / scale, parents, ids, ended, beam)

        going = ended.long().argsort(dim=1, stable=True)[:, : min(beam, int((~ended).sum(1).max()))]
        totals, parents, ids = best.gather(1, going), parents.gather(1, going), ids.gather(1, going)
        written = torch.cat([_chosen(written, parents), ids[..., None]], 2)
        slots = _chosen(slots, parents)

        done = [
            length == limit or (len(pool) == beam and (early_stopping or top / scale <= pool[-1].score))
            for limit, top, pool in zip(limits.tolist(), totals[:, 0].tolist(), (found[s] for s in sentences))
        ] if totals.shape[1] else [True] * n  # fmt: skip
        if all(done):
            break
        if any(done):
            order = _closed_up(done)
            moved = [place for place, source in enumerate(order) if source != place]
            places = torch.tensor(order, device=src.device)
            if moved:
                target = torch.tensor(moved, device=src.device)
                decoding.move(places[target], target)
            sentences = [sentences[place] for place in order]
            written, slots, totals, limits = (x[places] for x in (written, slots, totals, limits))
    return found


def continuations(
    logits: Float[Tensor, "n K V"], totals: Float[Tensor, "n K"], count: int, forbidden: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence, best first: (n, count) log-probabilities, the hypotheses that are
    continued, and the tokens. The vocabulary is searched hypothesis by hypothesis and not sorted."""
    normaliser = logits.logsumexp(2)
    logits[..., forbidden] = -math.inf
    some = min(count, logits.shape[2] - len(forbidden))
    values, ids = logits.topk(some, dim=2)
    values = values - (normaliser - totals)[..., None]
    best, places = values.flatten(1).topk(min(count, some * logits.shape[1]), dim=1)
    return best, places // some, ids.flatten(1).gather(1, places)


def _chosen(x: Tensor, parents: Int[Tensor, "n K"]) -> Tensor:
    """(n, K', T) -> (n, K, T): each hypothesis' parent's."""
    return x.gather(1, parents[..., None].expand(-1, -1, x.shape[2]))


def _keep_found(
    found: list[list[Hypothesis]],
    sentences: list[int],
    written: Tensor,
    scores: Tensor,
    parents: Tensor,
    ids: Tensor,
    ended: Tensor,
    beam: int,
) -> None:
    """Of the first K continuations those that end, into their sentence's pool of the best K."""
    for place, rank in ended[:, : scores.shape[1]].nonzero().tolist():
        past = written[place, parents[place, rank], 1:].tolist()
        pool = found[sentences[place]]
        pool.append(Hypothesis([*past, int(ids[place, rank])], float(scores[place, rank])))
        pool.sort(key=lambda hypothesis: -hypothesis.score)
        del pool[beam:]


def _closed_up(done: list[bool]) -> list[int]:
    """Places of those that are not done, so that as few as can be change theirs: the last fill the gaps."""
    going = [place for place, is_done in enumerate(done) if not is_done]
    late = [place for place in going if place >= len(going)]
    return [late.pop() if done[place] else place for place in range(len(going))]
