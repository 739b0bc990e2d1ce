"""BERT against transformers, on random weights and on those of MiniLM; its formulas by hand; what it refuses."""

import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import etude
from etude import catalog
from etude.data import fetch
from etude.errors import MissingError, RefusedError
from etude.language import bert
from etude.verify import checks, golden
from etude.weights import load_weights, read_tensors

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {"vocab_size": 61, "width": 24, "depth": 3, "num_heads": 4, "ffn": 40, "positions": 16}
THEIRS = transformers.BertConfig(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=16,
    num_labels=3,
)
MASKS = {
    "all": torch.ones(4, 13, dtype=torch.bool),
    "right": torch.arange(13) < torch.tensor([[13], [7], [1], [7]]),
    "left": torch.arange(13) >= torch.tensor([[0], [6], [12], [5]]),
    "holes": torch.tensor([[i * 5 % 7 != j % 3 for j in range(13)] for i in range(4)]),
}


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(4, 13) ids and segments; without token 0, padding, for which the reference keeps no gradient."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(1, 61, (4, 13), generator=g), torch.randint(0, 2, (4, 13), generator=g)


def rough(model: Any) -> Any:
    """Every parameter far from where it begins, normalisations and biases too; always the same."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def pair(theirs: Any, config: Any, dtype: torch.dtype = torch.float64):
    theirs = rough(theirs)
    ours = load_weights(config.build(), theirs.state_dict(), source="transformers").eval()
    return ours.to(dtype), theirs.to(dtype)


PAIRS = {
    "hidden": (lambda: transformers.BertModel(THEIRS), bert.Config(**SMALL), "last_hidden_state"),
    "masked-lm": (lambda: transformers.BertForMaskedLM(THEIRS), bert.MaskedLMConfig(**SMALL), "logits"),
    "classifier": (
        lambda: transformers.BertForSequenceClassification(THEIRS),
        bert.ClassifierConfig(**SMALL, num_labels=3),
        "logits",
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", PAIRS)
def test_equals_transformers(kind, mask):
    """Outputs at tokens and the gradients of all weights, in float64 at 1e-10, and in float32 at 1e-5."""
    if kind == "classifier" and mask in ("left", "holes"):
        pytest.skip("the reference reads the first place of a row, even where it is padding")
    make, config, output = PAIRS[kind]
    ids, segments = inputs()
    there = MASKS[mask]
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        ours, theirs = pair(make(), config, dtype)
        a = ours(ids, there, segments)
        b = getattr(theirs(input_ids=ids, attention_mask=there.long(), token_type_ids=segments), output)
        if a.ndim == 3:
            assert not a[~there].any()
            a, b = a[there], b[there]
        assert relative(a, b) < bound
        weight = torch.randn(b.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        (a * weight).sum().backward()
        (b * weight).sum().backward()
        gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None and "pooler" not in n}
        shaped = config.build()
        shaped.load_state_dict({n: torch.zeros_like(p) for n, p in ours.state_dict().items()})
        named = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in theirs.named_parameters()}
        for name, gradient in load_weights(shaped.to(dtype), named, source="transformers").named_parameters():
            found = ours.get_parameter(name).grad
            if found is None:
                assert "pooler" in name and kind == "hidden"
                continue
            assert (found - gradient).norm() <= bound * (
                gradient.norm() + 1e-3 * sum(g.norm() for g in gradients.values())
            )


@pytest.mark.parity
def test_golden():
    found = list(checks.checks("bert-base-classifier"))
    assert {check.quantity for check in found} >= {"parameters", "logits digest", "logits norm"}
    assert all(check.ok for check in found)


@pytest.mark.parity
@pytest.mark.parametrize("size", bert.sizes)
def test_parameters(size):
    config: Any = bert.sizes[size]
    theirs = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn,
    )
    kinds = {
        "classifier": transformers.BertForSequenceClassification,
        "lm": transformers.BertForMaskedLM,
        "embedder": functools.partial(transformers.BertModel, add_pooling_layer=False),
    }
    kind = kinds.get(size.split("-")[-1], transformers.BertModel)
    with torch.device("meta"):
        assert catalog.count(size) == sum(p.numel() for p in kind(theirs).parameters())


@pytest.fixture(scope="module")
def minilm():
    try:
        return fetch.path("minilm")
    except MissingError:
        pytest.skip("the weights of MiniLM are not here: etude data get minilm")


@pytest.mark.parity
def test_minilm(minilm):
    """The real weights: hidden states equal transformers', embeddings their mean over tokens, of length one."""
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    ours: Any = etude.load_weights(
        etude.model("bert-minilm"), minilm / "model.safetensors", source="transformers"
    ).eval()
    embedder = etude.model("bert-minilm-embedder")
    etude.load_weights(embedder, minilm / "model.safetensors", source="transformers").eval()
    ids = torch.randint(0, 30_522, (5, 24), generator=torch.Generator().manual_seed(0))
    there = torch.arange(24) < torch.tensor([[24], [17], [3], [1], [24]])
    with torch.no_grad():
        answer = theirs(input_ids=ids, attention_mask=there.long())
        assert relative(ours(ids, there)[there], answer.last_hidden_state[there]) < 1e-5
        assert relative(ours.pooled(ids, there), answer.pooler_output) < 1e-5
        means = torch.stack([hidden[:n].mean(0) for hidden, n in zip(answer.last_hidden_state, there.sum(1))])
        assert relative(embedder(ids, there), means / means.norm(dim=1, keepdim=True)) < 1e-5


@pytest.mark.parity
def test_minilm_means_something(minilm):
    """Sentences of one meaning lie together."""
    from etude.data import pieces
    from etude.tasks.sentences import embed

    embedder = etude.load_weights(
        etude.model("bert-minilm-embedder"), minilm / "model.safetensors", source="transformers"
    )
    said = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply.", "Shares dropped a lot."]
    points = embed(embedder.eval(), pieces.find("minilm"), said)
    cosines = points @ points.T
    assert torch.allclose(cosines.diagonal(), torch.ones(4))
    assert min(cosines[0, 1], cosines[2, 3]) > 0.5 > 0.2 > cosines[:2, 2:].max()


def test_layer_by_hand():
    """softmax(q k^T / sqrt(d)) v per head, then W2 gelu(W1 x), each added and normalised: one sentence, in float64."""
    config = bert.Config(**SMALL | {"depth": 1, "num_heads": 2})
    model = rough(config.build()).double()
    ids, segments = inputs()
    ids, segments = ids[:1, :5], segments[:1, :5]
    encoder, layer = model.encoder, model.encoder.layers[0]

    def norm(x, which):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * which.weight + which.bias

    e = encoder.embeddings
    x = e.words.weight[ids[0]] + e.positions.weight[:5] + e.segments.weight[segments[0]]
    x = norm(x, e.norm)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(24, dim=1)
    heads = []
    for h in (slice(0, 12), slice(12, 24)):
        scores = q[:, h] @ k[:, h].T / math.sqrt(12)
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, h])
    x = norm(x + torch.cat(heads, 1) @ layer.attended.weight.T + layer.attended.bias, layer.attention_norm)
    z = x @ layer.expand.weight.T + layer.expand.bias
    z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    x = norm(x + z @ layer.contract.weight.T + layer.contract.bias, layer.norm)
    assert relative(model(ids, None, segments)[0], x) < 1e-10


def test_chosen_positions_alone():
    model = rough(bert.MaskedLMConfig(**SMALL).build()).double()
    ids, _ = inputs()
    there = MASKS["right"]
    chosen = there & (ids % 3 == 0)
    assert relative(model(ids, there, chosen=chosen), model(ids, there)[chosen]) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.integers(0, 99))
def test_a_sentence_does_not_feel_its_batch(lengths, seed):
    """Whatever it is padded to and whatever stands beside it."""
    model = rough(bert.Config(**SMALL).build()).double()
    g = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(0, 61, (len(lengths), longest), generator=g)
    there = torch.arange(longest) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together = model(ids, there)
        for row, n in enumerate(lengths):
            assert relative(together[row, :n], model(ids[row : row + 1, :n])[0]) < 1e-12


def test_dropout_is_in_training_only():
    torch.manual_seed(0)
    model = bert.ClassifierConfig(**SMALL).build()
    ids, _ = inputs()
    assert torch.equal(model.eval()(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    still = replace(bert.ClassifierConfig(**SMALL), dropout=0.0, attention_dropout=0.5).build().train()
    assert not torch.equal(still(ids), still(ids))


# ------------------------------------------------------------------ layouts


def pretraining() -> dict[str, torch.Tensor]:
    """As the published files of bert-base are: all heads, and TensorFlow's names for normalisations."""
    tensors = rough(transformers.BertForPreTraining(THEIRS)).state_dict()
    named = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in tensors.items()}
    named = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in named.items()}
    assert any(n.endswith("gamma") for n in named)
    return named | {"bert.embeddings.position_ids": torch.arange(16)[None]}


@pytest.mark.parity
def test_published_files_fill_every_model():
    theirs = rough(transformers.BertForPreTraining(THEIRS))
    ids, segments = inputs()
    answer = theirs.bert(input_ids=ids, token_type_ids=segments)
    model: Any = load_weights(bert.Config(**SMALL).build(), pretraining(), source="transformers").eval()
    assert relative(model(ids, None, segments), answer.last_hidden_state) < 1e-5
    assert relative(model.pooled(ids, None, segments), answer.pooler_output) < 1e-5
    masked = load_weights(bert.MaskedLMConfig(**SMALL).build(), pretraining(), source="transformers").eval()
    scores = theirs(input_ids=ids, token_type_ids=segments).prediction_logits
    assert relative(masked(ids, None, segments), scores) < 1e-5
    embedder = load_weights(bert.EmbedderConfig(**SMALL).build(), pretraining(), source="transformers").eval()
    mean = answer.last_hidden_state.mean(1)
    assert relative(embedder(ids, None, segments), F.normalize(mean, dim=1)) < 1e-5
    classifier = bert.ClassifierConfig(**SMALL).build()
    load_weights(classifier.bert, pretraining(), source="transformers")
    assert torch.equal(classifier.bert.pooler.weight, theirs.bert.pooler.dense.weight)


@pytest.mark.parity
def test_with_and_without_prefix():
    theirs = rough(transformers.BertModel(THEIRS)).state_dict()
    a = load_weights(bert.Config(**SMALL).build(), theirs, source="transformers").state_dict()
    prefixed = {f"bert.{name}": tensor for name, tensor in theirs.items()}
    b = load_weights(bert.Config(**SMALL).build(), prefixed, source="transformers").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    bare = {name: tensor for name, tensor in theirs.items() if "pooler" not in name}
    load_weights(bert.Encoder(bert.Config(**SMALL)), bare, source="transformers")
    with pytest.raises(RefusedError, match="pooler"):
        load_weights(bert.Config(**SMALL).build(), bare, source="transformers")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.attention.self.key.bias"), "qkv.bias"),
        (lambda t: t.update({"bert.encoder.layer.7.output.dense.bias": torch.zeros(24)}), "layers.7.contract.bias"),
        (lambda t: t.update({"bert.embeddings.position_embeddings.weight": torch.zeros(9, 24)}), r"\(9, 24\) for \(16"),
        (lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(61, 24)}), "not tied"),
        (lambda t: t.update({"more.weight": torch.zeros(3)}), "more.weight"),
    ],
)
def test_what_differs_is_refused(change, said):
    tensors = dict(rough(transformers.BertForMaskedLM(THEIRS)).state_dict())
    change(tensors)
    with pytest.raises(RefusedError, match=said) as refused:
        load_weights(bert.MaskedLMConfig(**SMALL).build(), tensors, source="transformers")
    assert "\n" not in str(refused.value)


def test_classifier_needs_its_head():
    with pytest.raises(RefusedError, match=r"head\.weight"):
        load_weights(bert.ClassifierConfig(**SMALL).build(), pretraining(), source="transformers")


def test_a_pretrained_encoder_fills_a_classifier(tmp_path):
    """Of a run of masked words, by layout "masked-lm"."""
    from safetensors.torch import save_file

    trained = rough(bert.MaskedLMConfig(**SMALL).build())
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    classifier = bert.ClassifierConfig(**SMALL).build()
    load_weights(classifier.bert.encoder, tmp_path / "weights.safetensors", source="masked-lm")
    assert read_tensors(tmp_path / "weights.safetensors").keys() >= {"encoder.layers.0.qkv.weight"}
    filled = classifier.bert.encoder.get_parameter("layers.0.qkv.weight")
    assert torch.equal(filled, trained.encoder.layers[0].qkv.weight)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.tensor([[1, 61]]), "no token 61: the vocabulary has 61"),
        (torch.tensor([[1, -1]]), "no token -1"),
        (torch.zeros(2, 0, dtype=torch.int64), "no tokens"),
        (torch.zeros(1, 17, dtype=torch.int64), "17 tokens are too many: the model has 16 positions"),
    ],
)
def test_bad_ids(ids, said):
    with pytest.raises(ValueError, match=said):
        bert.Config(**SMALL).build()(ids)


def test_an_empty_sentence_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        bert.Config(**SMALL).build()(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], [0, 0, 0]]))


@pytest.mark.parametrize(
    ("change", "said"), [({"num_heads": 5}, "does not divide"), ({"depth": 0}, "depth is 0"), ({"width": -4}, "width")]
)
def test_bad_configurations(change, said):
    with pytest.raises(ValueError, match=said):
        bert.Config(**SMALL | change).build()


def test_initial_weights():
    """From N(0, 0.02), biases zero."""
    torch.manual_seed(0)
    model = bert.ClassifierConfig(**SMALL | {"width": 96}).build()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > 1000:
            assert 0.018 < parameter.std() < 0.022, name
        elif "norm.weight" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()


def test_golden_weights_are_what_the_reference_had():
    assert golden.load("bert_base").meta["n_params"] == catalog.count("bert-base-classifier")
