"""Transformer-Big with random weights against transformers' MarianMTModel with the same: translation by beam search of
16 sentences, every hypothesis as long as the others so that all do the same work; and training steps of 2,048 target
tokens. CTranslate2 in int8 stands beside the translation in bf16."""

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from etude import catalog
from etude.bench import Contest, clock
from etude.bench.peak import gemm_peak
from etude.data.base import Batch, Data, Dataset
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import DTYPES, pick_device, resolve
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer
from etude.language.transformer import Transformer
from etude.nn.lowbit import fast_linears
from etude.tasks.translate import Translate
from etude.weights import load_weights

VOCABULARY, PADDING, END = 32_000, 31_999, 0
SENTENCES, BEAM, WRITTEN = 16, 4, 32
TOKENS = 2048


def contests(*, compiled: bool = False) -> list[Contest]:
    """Target: twice as fast as transformers. `compiled` changes nothing here."""
    return [
        _translation("fp32", torch.float32, None),
        _translation("bf16", DTYPES[resolve("auto", pick_device())], 2.0),
        _beside_ctranslate2(),
        _training("train", 2.0),
        _training("share", None),
    ]


# ---------------------------------------------------------------- one network, theirs and ours


def _networks() -> tuple[nn.Module | None, Transformer]:
    """transformers' Marian, where it is installed, and ours with its weights."""
    torch.manual_seed(0)
    model = catalog.model(
        "transformer-big",
        vocab_size=VOCABULARY,
        positions="marian",
        output_bias=True,
        padding=PADDING,
        begin=PADDING,
        end=END,
        dropout=0.1,
    )
    assert isinstance(model, Transformer) and model.output_bias is not None
    with torch.no_grad():
        model.output_bias[END] = -1e4  # nothing ends before it must
    try:
        transformers: Any = __import__("transformers")
    except ImportError:
        return None, model.to(pick_device())
    c = model.config
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY, d_model=c.width, encoder_layers=c.depth, decoder_layers=c.depth, dropout=c.dropout,
        encoder_attention_heads=c.num_heads, decoder_attention_heads=c.num_heads, encoder_ffn_dim=c.ffn,
        decoder_ffn_dim=c.ffn, max_position_embeddings=256, activation_function="relu", scale_embedding=True,
        pad_token_id=PADDING, decoder_start_token_id=PADDING, eos_token_id=END, forced_eos_token_id=None,
        attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).to(pick_device())
    state = theirs.state_dict()
    state["final_logits_bias"][0, END] = -1e4
    theirs.load_state_dict(state)
    load_weights(model, state, source="transformers")
    return theirs, model.to(pick_device())


def _lengths(count: int, seed: int) -> Tensor:
    """Of sentences as they come: half have fewer than 24 tokens, some three times as many."""
    generator = torch.Generator().manual_seed(seed)
    return (24 * (0.5 * torch.randn(count, generator=generator)).exp()).long().clamp(4, 100)


def _ids(lengths: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) at random, and where there are some."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1, PADDING, mask.shape, generator=generator).masked_fill(~mask, PADDING)
    return ids.to(pick_device()), mask.to(pick_device())


# ---------------------------------------------------------------- translation


def _translation(name: str, dtype: torch.dtype, target: float | None) -> Contest:
    theirs, model = _networks()
    src, mask = _ids(_lengths(SENTENCES, 0), 1)
    fast = fast_linears(model, dtype=dtype)
    assert isinstance(fast, Transformer)
    expected: list[list[int]] = []

    def ours() -> None:
        answers = _written(fast, src, mask)
        if dtype == torch.float32:  # the last token is the end, which theirs never reaches
            found = [[list(one.ids[:-1]) for one in answer] for answer in answers]
            differing = sum(ids[:-1] not in several for ids, several in zip(expected, found))
            assert not differing, f"{differing} of {SENTENCES} translations differ from transformers'"

    def plain() -> None:
        assert theirs is not None
        with torch.inference_mode():
            made: Any = theirs.eval().generate(  # pyright: ignore[reportCallIssue]
                input_ids=src,
                attention_mask=mask.long(),
                num_beams=BEAM,
                do_sample=False,
                min_new_tokens=WRITTEN,
                max_new_tokens=WRITTEN,
                length_penalty=1.0,
                bad_words_ids=[[PADDING]],
            )
        expected[:] = made[:, 1:].tolist()

    return Contest(
        name=f"transformer.translate.{name}",
        what=f"Transformer-Big, beam {BEAM}, {SENTENCES} sentences, {WRITTEN} tokens written, {name}",
        amount=SENTENCES * WRITTEN,
        unit="tokens/s",
        ours=clock(ours),
        peer=clock(plain) if theirs is not None else None,
        peer_name="transformers, fp32",
        peer_version=version("transformers") if theirs is not None else None,
        target=target,
        rounds=3,
        warmup=1,
    )


def _written(model: Transformer, src: Tensor, mask: Tensor) -> list[Any]:
    return model.generate(src, mask, beam=BEAM, length_penalty=1.0, max_length=WRITTEN)


def _beside_ctranslate2() -> Contest:
    theirs, model = _networks()
    src, mask = _ids(_lengths(SENTENCES, 0), 1)
    fast = fast_linears(model, dtype=DTYPES[resolve("auto", pick_device())])
    assert isinstance(fast, Transformer)
    try:
        library: Any = __import__("ctranslate2.converters.transformers")
        peer = _ctranslate2(library, theirs, src, mask) if theirs is not None else None
    except ImportError:
        peer = None
    return Contest(
        name="transformer.translate.ctranslate2",
        what=f"Transformer-Big, beam {BEAM}, {SENTENCES} sentences, {WRITTEN} tokens written, bf16 against int8",
        amount=SENTENCES * WRITTEN,
        unit="tokens/s",
        ours=clock(lambda: _written(fast, src, mask)),
        peer=clock(peer) if peer else None,
        peer_name="CTranslate2, int8",
        peer_version=version("ctranslate2") if peer else None,
        target=None,
        rounds=3,
        warmup=1,
    )


def _ctranslate2(library: Any, theirs: nn.Module, src: Tensor, mask: Tensor) -> Callable[[], None]:
    """Translation with CTranslate2 of the same network, quantised to int8."""
    spec = library.converters.transformers.MarianMTLoader().get_model_spec(theirs)
    words = ["</s>", *(f"w{i}" for i in range(1, VOCABULARY - 1))]  # padding is no word there
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = "</s>", "w1", "</s>"
    with tempfile.TemporaryDirectory() as folder:
        spec.validate()
        spec.optimize(quantization="int8")
        spec.save(folder)
        translator = library.Translator(folder, device="cpu", inter_threads=1, intra_threads=torch.get_num_threads())
    sentences = [[words[int(i)] for i in row[there]] for row, there in zip(src.cpu(), mask.cpu())]

    def translate() -> None:
        translator.translate_batch(
            sentences, beam_size=BEAM, min_decoding_length=WRITTEN, max_decoding_length=WRITTEN, length_penalty=1.0
        )

    return translate


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class _Given(Data):
    """One batch at random: speed does not depend on what it says."""

    def open(self) -> "_GivenSet":
        return _GivenSet()

    def prepare(self, raw: Any) -> Tensor:
        return raw

    def collate(self, samples: list[Tensor]) -> Batch:
        return {"source": torch.stack(samples)}


class _GivenSet(Dataset):
    def __init__(self):
        self.sizes = {"train": 10_000, "test": 10}
        self.facts = {"source": "random", "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        lengths = _lengths(len(indices), 2)
        (source, _), (target, _) = _ids(lengths, 3), _ids(lengths.flip(0), 4)
        weight = torch.full((len(indices),), len(indices) / int(lengths.sum()), device=source.device)
        return {
            "source": source,
            "target": target,
            "source_length": lengths.to(source.device),
            "target_length": lengths.flip(0).to(source.device),
            "weight": weight,
            "index": torch.arange(len(indices)),
        }


class _Unchecked(Translate):
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """There is no text, so there is no vocabulary to compare with."""


@dataclass(frozen=True)
class _Same:
    """A model configuration that hands out one given network, so that both sides train the same."""

    model: nn.Module

    def build(self) -> nn.Module:
        return self.model


def _training(kind: str, target: float | None) -> Contest:
    """Tokens a second against transformers; or ("share") the time that the matrix products alone would take, at the
    fastest that a large one runs here, as a share of what the step takes."""
    device = pick_device()
    theirs, model = _networks()
    count = int((_lengths(1000, 2).cumsum(0) <= TOKENS).sum())
    batch = _GivenSet().fetch("train", range(count))
    tokens = int(batch["target_length"].sum())
    if kind == "share":
        theirs = None
    steps = [functools.partial(_plain_step, *_prepared(theirs, batch))] if theirs is not None else []
    recipe = Recipe(
        name="bench.transformer",
        model=_Same(copy.deepcopy(model)),
        data=_Given(),
        task=_Unchecked(smoothing=0.1),
        optim=Optim("adam", lr=1e-4),
        schedule=Schedule("constant"),
        batch_size=count,
        clip=1.0,
    )
    trainers: list[Trainer] = []  # made when it is our turn: a Trainer sets the memory allocator

    def ours() -> float:
        if not trainers:
            steps.clear()  # their optimizer's memory is free again
            trainers.append(Trainer(recipe, None, quiet=True))
            trainers[0].model.train()
        return trainers[0].take_step(batch)["loss"].item()

    ideal = (
        _operations(model, tokens) / gemm_peak(DTYPES[resolve("auto", device)], device=device)
        if kind == "share"
        else 0.0
    )
    return Contest(
        name=f"transformer.{kind}",
        what=f"Transformer-Big training, {count} pairs, {tokens:,} target tokens, auto precision",
        amount=ideal or tokens,
        unit="of the matrix product's speed" if ideal else "tokens/s",
        ours=clock(ours),
        peer=clock(lambda: steps[0]()) if steps else None,
        peer_name="transformers, fp32, padded",
        peer_version=version("transformers") if steps else None,
        target=target,
        rounds=3,
        warmup=1,
    )


def _prepared(theirs: nn.Module, batch: Batch) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Tensor]]:
    """Their network, its optimizer and the batch as it takes it."""
    src, labels = batch["source"], batch["target"]
    inputs = {
        "input_ids": src,
        "attention_mask": (src != PADDING).long(),
        "labels": labels.masked_fill(labels == PADDING, -100),
    }
    return theirs.train(), torch.optim.Adam(theirs.parameters(), lr=1e-4), inputs


def _plain_step(theirs: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Tensor]) -> None:
    optimizer.zero_grad()
    logits = theirs(**inputs).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten(), label_smoothing=0.1)
    loss.backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    optimizer.step()
    loss.item()


def _operations(model: Transformer, tokens: int) -> float:
    """Of a step's matrix products, those within attention left out: 6 a weight and token (forward, and twice backward).
    Source and target have as many tokens; keys and values of the cross-attention are counted like the rest."""
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding.weight")
    return 6.0 * tokens * (weights + model.embedding.weight.numel())
