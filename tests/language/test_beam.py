"""Beam search: against the reference, against all translations there are, and its properties."""

import itertools

import pytest
import torch

import etude
from etude.language import transformer as tf
from etude.language.beam import PENALTIES, Penalty

BOTH: tuple[Penalty, ...] = ("length", "gnmt")

SMALL = {"vocab_size": 40, "width": 32, "depth": 2, "num_heads": 4, "ffn": 48, "dropout": 0.0}


def network(seed: int, *, ending: float = 0.0, **changes) -> tf.Transformer:
    """Random weights, large enough for its opinions to differ; `ending` raises the end token's logit."""
    torch.manual_seed(seed)
    config = tf.Config(**SMALL | {"output_bias": True, "padding": 39, "begin": 39, "end": 0} | changes)
    model = config.build().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
        assert model.output_bias is not None
        model.output_bias[0] += ending
    return model


def sources(lengths: list[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, 39, mask.shape, generator=generator).masked_fill(~mask, 39), mask


def reference(seed: int, ending: float):
    """transformers' Marian with random weights, and ours with the same."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MarianConfig(
        vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=80, pad_token_id=39,
        eos_token_id=0, decoder_start_token_id=39, forced_eos_token_id=None, scale_embedding=True,
        activation_function="relu", num_beams=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    theirs = transformers.MarianMTModel(config).double().eval()
    positions = {id(p) for name, p in theirs.named_parameters() if "embed_positions" in name}
    with torch.no_grad():
        for p in theirs.parameters():
            if id(p) not in positions:
                p.normal_(std=0.3)
        theirs.final_logits_bias.normal_()
        theirs.final_logits_bias[0, 0] += ending
    ours = network(0, positions="marian")
    etude.load_weights(ours, theirs.state_dict(), source="transformers")
    return ours, theirs


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
def test_logits_and_gradients_equal_marian(seed):
    ours, theirs = reference(seed, 0.0)
    src, mask = sources([7, 3, 5], seed)
    tgt = torch.randint(1, 39, (3, 6), generator=torch.Generator().manual_seed(seed + 9))
    expected = theirs(input_ids=src, attention_mask=mask.long(), decoder_input_ids=tgt).logits
    found = ours(src, tgt, mask)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    expected.square().mean().backward()
    found.square().mean().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    grads["final_logits_bias"] = torch.zeros(1, 40, dtype=torch.float64)  # a buffer there
    renamed = network(0)
    etude.load_weights(renamed, grads, source="transformers")
    for name, p in ours.named_parameters():
        if name != "output_bias":
            torch.testing.assert_close(p.grad, renamed.get_parameter(name).detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("ending", [4.0, 6.0])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_equal_marian(seed, ending, beam):
    ours, theirs = reference(seed, ending)
    src, mask = sources([7, 3, 5, 9], seed)
    made = theirs.generate(
        input_ids=src, attention_mask=mask.long(), num_beams=beam, do_sample=False, max_new_tokens=40,
        length_penalty=0.6, bad_words_ids=[[39]], num_return_sequences=beam,
    )  # fmt: skip
    found = ours.generate(src, mask, beam=beam, length_penalty=0.6, max_length=40)
    compared = 0
    for sentence, rows in zip(found, made[:, 1:].unflatten(0, (4, beam)).tolist()):
        # those that ran into the limit end differently: ours are closed there, theirs are not
        ended = [tuple(row[: row.index(0) + 1]) for row in rows if 0 in row]
        if len(ended) == beam:
            assert [h.ids for h in sentence] == ended
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("penalty", BOTH)
@pytest.mark.parametrize("norm", ["post", "pre", "dlcl", "deepnorm"])
def test_what_is_found_is_among_all_there_is_and_no_better(penalty, norm):
    model = network(3, vocab_size=6, padding=5, begin=4, norm=norm)
    src = torch.tensor([[1, 2, 3]])
    every = []
    for length in range(4):
        for words in itertools.product([1, 2, 3], repeat=length):
            ids = [*words, 0]
            logits = model(src, torch.tensor([[4, *words]]))[0].clone()
            logits = logits.log_softmax(-1)
            total = sum(logits[i, token].item() for i, token in enumerate(ids))
            every.append((total / float(PENALTIES[penalty](float(len(ids)), 0.6)), tuple(ids)))
    every.sort(reverse=True)
    found = model.generate(src, beam=2, max_length=4, penalty=penalty)[0]
    assert found[0].score <= every[0][0] + 1e-6
    greedy = model.generate(src, beam=1, max_length=4, penalty=penalty)[0][0]
    assert (greedy.score, greedy.ids) in [(pytest.approx(s, abs=1e-6), ids) for s, ids in every]


def test_exhaustive_search_on_a_tiny_vocabulary():
    """With a beam as wide as all unfinished translations, nothing is lost."""
    model = network(5, vocab_size=60, padding=59, begin=58)
    with torch.no_grad():
        assert model.output_bias is not None
        model.output_bias[4:] = -1e6  # only the end and three words can follow
    src, _ = sources([4])
    for penalty in BOTH:
        every = []
        for length in range(4):
            for words in itertools.product([1, 2, 3], repeat=length):
                logits = model(src, torch.tensor([[58, *words]]))[0].log_softmax(-1)
                total = sum(logits[i, token].item() for i, token in enumerate([*words, 0]))
                every.append((total / float(PENALTIES[penalty](length + 1.0, 0.6)), (*words, 0)))
        every.sort(reverse=True)
        found = model.generate(src, beam=29, max_length=4, penalty=penalty)[0]
        for hypothesis, (score, ids) in zip(found[:10], every):
            assert hypothesis.ids == ids and hypothesis.score == pytest.approx(score, abs=1e-5)


def test_the_score_is_the_penalised_log_probability():
    model = network(2, ending=2.0)
    src, mask = sources([5, 8])
    for penalty in BOTH:
        for i, sentence in enumerate(model.generate(src, mask, beam=3, penalty=penalty, max_length=20)):
            assert [h.score for h in sentence] == sorted((h.score for h in sentence), reverse=True)
            for hypothesis in sentence:
                ids = torch.tensor([hypothesis.ids])
                read = torch.cat([torch.tensor([[39]]), ids[:, :-1]], 1)
                logits = model(src[i : i + 1], read, mask[i : i + 1])[0].log_softmax(-1)
                total = logits.gather(1, ids[0][:, None]).sum().item()
                divided = total / float(PENALTIES[penalty](float(len(hypothesis.ids)), 0.6))
                assert hypothesis.score == pytest.approx(divided, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("norm", ["post", "pre", "dlcl", "deepnorm"])
def test_a_batch_equals_its_sentences_alone(norm, beam):
    model = network(4, norm=norm, ending=3.0)
    lengths = [6, 2, 9, 4]
    src, mask = sources(lengths)
    batch = model.generate(src, mask, beam=beam)
    for i, length in enumerate(lengths):
        alone = model.generate(src[i : i + 1, :length], beam=beam)[0]
        assert [h.ids for h in batch[i]] == [h.ids for h in alone]


def test_greedy_is_the_likeliest_token_each_time():
    model = network(6, ending=1.0)
    src, _ = sources([5])
    found = model.generate(src, beam=1, max_length=12)[0][0]
    read = [39]
    while len(read) < 12 and read[-1] != 0:
        logits = model(src, torch.tensor([read]))[0, -1]
        logits[39] = -1e9
        read.append(int(logits.argmax()))
    assert found.ids == (*read[1:], 0)[: len(found.ids)]


def test_lengths_are_kept():
    model = network(1, ending=-50.0)
    src, mask = sources([5, 2])
    assert [len(s[0].ids) for s in model.generate(src, mask, beam=2)] == [55, 52]
    for sentence in model.generate(src, mask, beam=2, max_length=7):
        assert all(len(h.ids) == 7 and h.ids[-1] == 0 and 39 not in h.ids for h in sentence)


def test_settings_that_cannot_be():
    model, (src, mask) = network(1), sources([3])
    with pytest.raises(ValueError, match="beam is 0"):
        model.generate(src, mask, beam=0)
    with pytest.raises(ValueError, match="max_length is 0"):
        model.generate(src, mask, max_length=0)
    with pytest.raises(ValueError, match="beam of 30 needs 62 tokens, the vocabulary has 40"):
        model.generate(src, mask, beam=30)
