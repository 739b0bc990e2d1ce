"""Sequences of different lengths without padding: laid end to end, so that only tokens are computed with.

A batch of B sequences padded to T takes B T rows through every linear layer, of which often more than half are padding.
Packed, it takes N rows, the sum of the lengths. Attention alone needs to know which rows belong together: it runs over
groups of sequences of about one length, of which those of exactly one length need no mask and no copies.

Shapes: B sequences, T the longest, N tokens in all (queries), M tokens of the keys, H heads, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from etude.nn.attention import attend

WASTE = 1.15
"""A group takes a further sequence while padding leaves its rows below this many times its tokens."""


class Packing:
    """Where B sequences lie when they are laid end to end, shortest first.

    `lengths` (B,) of at least 1 each. Row r of a packed tensor is token `place[r]` of sequence `sequence[r]`.
    """

    def __init__(self, lengths: Tensor | Sequence[int], *, device: torch.device | str | None = None):
        lengths = torch.as_tensor(lengths)
        device = torch.device(device) if device is not None else lengths.device
        counts = lengths.cpu()
        if counts.ndim != 1 or counts.numel() == 0 or int(counts.min()) < 1:
            raise ValueError(f"lengths must be one number of at least 1 a sequence, not {counts.tolist()}")
        order = torch.argsort(counts, stable=True)
        ordered = counts[order]
        self.counts: list[int] = counts.tolist()
        self.longest = int(ordered[-1])
        self.tokens = int(counts.sum())
        begins = ordered.cumsum(0) - ordered
        self.start: list[int] = torch.empty_like(begins).scatter_(0, order, begins).tolist()
        """The row where each sequence begins."""
        self.order: list[int] = order.tolist()
        self.sequence = order.repeat_interleave(ordered).to(device)
        self.place = (torch.arange(self.tokens) - begins.repeat_interleave(ordered)).to(device)
        self.lengths = counts.to(device)

    @classmethod
    def of(cls, mask: Bool[Tensor, "B T"]) -> "Packing":
        """Of a batch padded on the right: `mask` is True at tokens. ValueError for other masks, or empty rows."""
        lengths = mask.sum(1)
        if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
            raise ValueError("the mask has holes: tokens must stand at the beginning of each row, padding at its end")
        return cls(lengths)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) padded on the right -> (N, ...)"""
        return x[self.sequence, self.place]

    def unpack(self, x: Tensor, *, longest: int | None = None) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros where there is no token. T: `longest`, by default the longest sequence's."""
        shape = (len(self.counts), longest or self.longest, *x.shape[1:])
        return x.new_zeros(shape).index_put((self.sequence, self.place), x)


@dataclass(frozen=True)
class _Group:
    """Sequences that attend together: their rows of queries (b, t) and keys (b, s), as slices where possible."""

    queries: Tensor | slice
    keys: Tensor | slice
    shape: tuple[int, int, int]
    mask: Tensor | None
    """(b, 1, t, s), True where a query may look; None where every place holds a token."""
    kept: Tensor | None
    """Which of the b * t rows are tokens; None: all."""


class PackedAttention:
    """softmax(q k^T / sqrt(D)) v within each sequence. Planned once for a batch, called in every layer.

    `keys` is the packing of the keys where they are other sequences than the queries, one for one (cross-attention).
    `causal`: no query looks at a later key; for queries that are their own keys.
    """

    def __init__(self, queries: Packing, keys: Packing | None = None, *, causal: bool = False):
        if causal and keys is not None:
            raise ValueError("causal attention is of sequences to themselves")
        self.causal = causal
        keys = keys or queries
        if len(queries.counts) != len(keys.counts):
            raise ValueError(f"{len(queries.counts)} sequences of queries, {len(keys.counts)} of keys")
        self._groups = [_group(queries, keys, members, causal) for members in _grouped(queries, keys)]
        rows = torch.cat([_rows(group) for group in self._groups])
        self._back = None if torch.equal(rows, torch.arange(len(rows), device=rows.device)) else rows.argsort()

    def __call__(
        self, q: Float[Tensor, "N H D"], k: Float[Tensor, "M H D"], v: Float[Tensor, "M H D"], *, dropout: float = 0.0
    ) -> Float[Tensor, "N H D"]:
        """(N, H, D), (M, H, D), (M, H, D) -> (N, H, D); `dropout`: the share of attention weights that is dropped."""
        answers = []
        for group in self._groups:
            b, t, s = group.shape
            q_, k_, v_ = (
                (x[rows] if isinstance(rows, slice) else x.index_select(0, rows)).view(b, n, *x.shape[1:])
                for x, rows, n in ((q, group.queries, t), (k, group.keys, s), (v, group.keys, s))
            )
            heads = (x.transpose(1, 2) for x in (q_, k_, v_))
            answer = attend(*heads, mask=group.mask, causal=self.causal, dropout=dropout)
            answer = answer.transpose(1, 2).reshape(b * t, *q.shape[1:])
            answers.append(answer if group.kept is None else answer[group.kept])
        answer = torch.cat(answers) if len(answers) > 1 else answers[0]
        return answer if self._back is None else answer.index_select(0, self._back)


def _grouped(queries: Packing, keys: Packing) -> list[list[int]]:
    """Sequences in groups of about one length. A GPU takes all at once: there a call costs more than padding."""
    members = sorted(queries.order, key=lambda i: (queries.counts[i], keys.counts[i]))
    if queries.place.device.type != "cpu":
        return [members]
    groups: list[list[int]] = []
    longest = tokens = 0
    for i in members:
        length, own = max(queries.counts[i], keys.counts[i]), queries.counts[i] + keys.counts[i]
        if groups and 2 * max(longest, length) * (len(groups[-1]) + 1) <= WASTE * (tokens + own):
            groups[-1].append(i)
            longest, tokens = max(longest, length), tokens + own
        else:
            groups.append([i])
            longest, tokens = length, own
    return groups


def _group(queries: Packing, keys: Packing, members: list[int], causal: bool) -> _Group:
    q_rows, q_there = _places(queries, members)
    k_rows, k_there = _places(keys, members)
    whole = bool(k_there.all())
    mask = None if whole or causal else k_there[:, None, None].expand(-1, -1, q_rows.shape[1], -1)
    # padding stands after a sequence's last token, where causal queries never look
    shape = (len(members), q_rows.shape[1], k_rows.shape[1])
    kept = None if bool(q_there.all()) else q_there.flatten().nonzero()[:, 0]
    return _Group(_sliced(q_rows), _sliced(k_rows), shape, mask, kept)


def _places(packing: Packing, members: list[int]) -> tuple[Tensor, Tensor]:
    """(b, t) rows of these sequences, the last one's again where they end; and where there is a token."""
    device = packing.place.device
    counts = torch.tensor([packing.counts[i] for i in members])[:, None]
    starts = torch.tensor([packing.start[i] for i in members])[:, None]
    steps = torch.arange(int(counts.max()))
    return (starts + steps.minimum(counts - 1)).to(device), (steps < counts).to(device)


def _sliced(rows: Tensor) -> Tensor | slice:
    """Rows as a slice where they follow each other, else flat."""
    flat = rows.flatten()
    first = int(flat[0])
    if torch.equal(flat, torch.arange(first, first + len(flat), device=flat.device)):
        return slice(first, first + len(flat))
    return flat


def _rows(group: _Group) -> Tensor:
    """The rows of the group's answers."""
    if isinstance(group.queries, slice):
        device = group.kept.device if group.kept is not None else None
        rows = torch.arange(group.queries.start, group.queries.stop, device=device)
    else:
        rows = group.queries
    return rows if group.kept is None else rows[group.kept]
