import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.nn.generation import draw, probabilities

LOGITS = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]], dtype=torch.float64)


def near(p, expected):
    torch.testing.assert_close(p, torch.tensor([expected], dtype=torch.float64))


def test_temperature_by_hand():
    near(probabilities(LOGITS), [0.5, 0.3, 0.15, 0.05])
    squared = [0.25, 0.09, 0.0225, 0.0025]
    near(probabilities(LOGITS, temperature=0.5), [x / sum(squared) for x in squared])
    near(probabilities(LOGITS, temperature=0.0), [1.0, 0.0, 0.0, 0.0])


def test_a_temperature_near_zero_is_the_limit():
    near(probabilities(LOGITS, temperature=1e-320), [1.0, 0.0, 0.0, 0.0])
    near(probabilities(1e4 * LOGITS[:, [0, 0, 3, 3]], temperature=1e-310), [0.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.5},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        probabilities(LOGITS, **wrong)


def test_top_k_by_hand():
    near(probabilities(LOGITS, top_k=2), [0.625, 0.375, 0.0, 0.0])
    near(probabilities(LOGITS, top_k=9), [0.5, 0.3, 0.15, 0.05])


def test_top_p_keeps_the_fewest_that_reach_it():
    near(probabilities(LOGITS, top_p=0.5), [1.0, 0.0, 0.0, 0.0])
    near(probabilities(LOGITS, top_p=0.51), [0.625, 0.375, 0.0, 0.0])
    near(probabilities(LOGITS, top_p=0.9), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0])
    near(probabilities(LOGITS, top_p=1e-9), [1.0, 0.0, 0.0, 0.0])


def test_the_repetition_penalty_lowers_what_was_seen_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0]], dtype=torch.float64)
    seen = torch.tensor([[True, True, False]])
    expected = torch.tensor([[1.0, -4.0, 1.0]], dtype=torch.float64).softmax(1)
    torch.testing.assert_close(probabilities(logits, repetition_penalty=2.0, seen=seen), expected)


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9), st.floats(0.1, 3), st.integers(0, 9), st.floats(0.05, 1))
def test_probabilities_sum_to_one_and_keep_the_order(logits, temperature, top_k, top_p):
    p = probabilities(torch.tensor([logits]).float(), temperature=temperature, top_k=top_k, top_p=top_p)[0]
    assert p.sum().item() == pytest.approx(1) and (p >= 0).all()
    given_logits = torch.tensor(logits)
    assert p.max() == p[given_logits == given_logits.max()].max()
    if top_k:
        assert int((p > 0).sum()) <= top_k


def test_draws_fall_as_the_probabilities_say():
    p = probabilities(LOGITS, top_k=3).expand(10_000, 4)
    numbers = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = torch.bincount(draw(p, numbers), minlength=4)
    assert [round(c / 10_000, 3) for c in counts.tolist()] == [0.526, 0.316, 0.158, 0.0]
    assert draw(p[:1], torch.tensor([0.999999999999], dtype=torch.float64)).item() == 2
