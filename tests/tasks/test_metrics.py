"""Measures: exact however the samples are divided."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.tasks.metrics import Confusion, Mean, Worst


@given(cuts=st.lists(st.integers(0, 101), max_size=4))
def test_parts_merge_to_the_whole(cuts):
    torch.manual_seed(0)
    labels, predicted, scores = torch.randint(4, (101,)), torch.randint(4, (101,)), torch.rand(101).round(decimals=1)
    bounds = [0, *sorted(cuts), 101]

    def measure(pieces):
        mean, confusion, worst = Mean(), Confusion(4), Worst(7)
        for a, b in pieces:
            mean.add(predicted[a:b] == labels[a:b])
            confusion.add(labels[a:b], predicted[a:b])
            worst.add(scores[a:b], torch.arange(a, b))
        return mean, confusion, worst

    whole = measure([(0, 101)])
    parts = [measure([piece]) for piece in zip(bounds, bounds[1:])]
    for other in parts[1:]:
        for mine, theirs in zip(parts[0], other):
            mine.merge(theirs)
    assert parts[0][0].value() == whole[0].value() == (labels == predicted).double().mean().item()
    assert parts[0][1].value() == whole[1].value()
    assert sum(map(sum, whole[1].value())) == 101
    assert whole[1].value()[2][1] == int(((labels == 2) & (predicted == 1)).sum())


def test_worst_keeps_the_largest_with_their_columns():
    worst = Worst(2)
    worst.add(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([10, 11, 12]), torch.tensor([1.5, 2.5, 3.5]))
    worst.add(torch.tensor([0.7]), torch.tensor([13]), torch.tensor([4.5]))
    assert worst.value() == [(11, 2.5), (13, 4.5)]
    worst.add(torch.tensor([]), torch.tensor([]), torch.tensor([]))
    assert len(worst.value()) == 2
