"""Transformer-Big beside transformers' MarianMTModel, with the same random weights.

Translation: 16 sentences of about 20 tokens, beam 4, of each the 4 translations of 24 tokens, the last of which is the
end: it is all but impossible before, so that both do the same work. In fp32 the same tokens must come out. CTranslate2,
which has int8 arithmetic and its own kernels, is shown beside. Training: steps of about 2,048 target tokens, label
smoothing 0.1, Adam; transformers pads, computes in fp32 and takes torch's Adam as it is.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.bench import Contest, Skipped, clock
from etude.bench.step import engine_step, where_bf16
from etude.data.base import Batch
from etude.data.function import Function
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import computes_bf16, pick_device
from etude.engine.recipe import Recipe
from etude.errors import EtudeError
from etude.language import transformer
from etude.nn.lowbit import WEIGHTS, fast_linears
from etude.tasks.base import LossLogs, Task
from etude.weights import load_weights

SENTENCES, BEAM, WRITTEN, TOKENS = 16, 4, 24, 2048
VOCABULARY = 37_000
CONFIG = replace(
    transformer.sizes["transformer-big"],
    vocab_size=VOCABULARY,
    positions="marian",
    output_bias=True,
    padding=VOCABULARY - 1,
    begin=VOCABULARY - 1,
    end=0,
)
IMPOSSIBLE = -1e4
"""Added to the end's logit."""


def contests(*, compiled: bool = False) -> list[Contest | Skipped]:
    """Target: twice transformers in bf16, or in fp32 where there is no bf16. `compiled` changes nothing here."""
    bf16 = computes_bf16(pick_device())
    return [
        _translation("fp32", "fp32", _marian, None if bf16 else 2.0),
        _translation("bf16", "bf16", _marian, 2.0 if bf16 else None),
        _translation("ctranslate2.fp32", "fp32", partial(_ctranslate2, kind="float32"), 1.0),
        _translation("ctranslate2.int8", "int8", partial(_ctranslate2, kind="int8"), None),
        _training("fp32", 1.0),
        where_bf16("transformer.training.auto", "Transformer-Big training, auto", lambda: _training("auto", None)),
    ]


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Gamma-distributed, as a sentence's words are about: 3 to 60, 20 on average."""
    return np.random.default_rng(seed).gamma(3.0, 6.7, count).round().astype(int).clip(3, 60)


def sentences(counts: np.ndarray, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids at random (B, S), padded, and where there are tokens."""
    mask = torch.arange(int(counts.max())) < torch.from_numpy(counts)[:, None]
    ids = torch.randint(1, VOCABULARY - 1, mask.shape, generator=torch.Generator().manual_seed(seed))
    return ids.masked_fill(~mask, CONFIG.padding), mask


@lru_cache
def marian() -> tuple[str | None, Any]:
    """The peer's version and its model at random; none where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None, None
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY, d_model=CONFIG.width, encoder_layers=CONFIG.depth, decoder_layers=CONFIG.depth,
        encoder_attention_heads=CONFIG.num_heads, decoder_attention_heads=CONFIG.num_heads,
        encoder_ffn_dim=CONFIG.ffn, decoder_ffn_dim=CONFIG.ffn, activation_function="relu", dropout=CONFIG.dropout,
        scale_embedding=True, pad_token_id=CONFIG.padding, eos_token_id=CONFIG.end,
        decoder_start_token_id=CONFIG.begin, forced_eos_token_id=CONFIG.end,
    )  # fmt: skip
    theirs: Any = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.ndim == 2 and len(p) != config.max_position_embeddings:
                nn.init.xavier_uniform_(p)
        nn.init.normal_(theirs.model.shared.weight, std=CONFIG.width**-0.5)
        theirs.final_logits_bias[0, CONFIG.end] = IMPOSSIBLE
    return transformers.__version__, theirs


def network() -> transformer.Transformer:
    """Ours with the peer's weights, or fresh ones where it is not installed."""
    ours = CONFIG.build().eval()
    _, theirs = marian()
    if theirs is not None:
        load_weights(ours, theirs.state_dict(), source="transformers")
    else:
        with torch.no_grad():
            assert ours.output_bias is not None
            ours.output_bias[CONFIG.end] = IMPOSSIBLE
    return ours


Found = set[tuple[int, ...]]
"""The translations of a sentence."""


def _marian(src: Tensor, mask: Tensor) -> tuple[str, str | None, Callable[[], list[Found]] | None]:
    version, theirs = marian()
    if theirs is None:
        return "transformers", None, None
    device = pick_device()
    theirs = theirs.to(device)

    def translate() -> list[Found]:
        theirs.eval()  # the contests of training share it
        made = theirs.generate(
            input_ids=src.to(device), attention_mask=mask.long().to(device), num_beams=BEAM, do_sample=False,
            max_length=WRITTEN + 1, length_penalty=1.0, num_return_sequences=BEAM, bad_words_ids=[[CONFIG.padding]],
        )  # fmt: skip
        rows = made[:, 1:].unflatten(0, (-1, BEAM)).tolist()
        return [{tuple(ids) for ids in sentence} for sentence in rows]

    return "transformers MarianMTModel.generate, fp32", version, translate


def _ctranslate2(src: Tensor, mask: Tensor, *, kind: str) -> tuple[str, str | None, Callable[[], list[Found]] | None]:
    _, theirs = marian()
    try:
        import ctranslate2  # pyright: ignore[reportMissingImports]
        from ctranslate2.converters.transformers import MarianMTLoader  # pyright: ignore[reportMissingImports]
    except ImportError:
        return f"CTranslate2 {kind}", None, None
    if theirs is None:
        return f"CTranslate2 {kind}", None, None
    # its int8 weights are made in place, in the memory of the model that it reads
    spec: Any = MarianMTLoader().get_model_spec(copy.deepcopy(theirs))
    names = [str(i) for i in range(VOCABULARY - 1)]  # it has no padding
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = "0", "1", "0"
    spec.config.add_source_eos = False
    spec.validate()
    spec.optimize(quantization=kind)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        threads = torch.get_num_threads()
        peer = ctranslate2.Translator(folder, inter_threads=1, intra_threads=threads, compute_type=kind)
    said = [[str(i) for i in ids[there].tolist()] for ids, there in zip(src, mask)]

    def translate() -> list[Found]:
        answers = peer.translate_batch(
            said, beam_size=BEAM, max_decoding_length=WRITTEN, min_decoding_length=WRITTEN, num_hypotheses=BEAM
        )
        return [{tuple(map(int, ids)) for ids in answer.hypotheses} for answer in answers]

    return f"CTranslate2 {kind}", ctranslate2.__version__, translate


def _translation(
    name: str,
    kind: str,
    peer: Callable[[Tensor, Tensor], tuple[str, str | None, Callable[[], list[Found]] | None]],
    target: float | None,
) -> Contest:
    device = pick_device()
    src, mask = sentences(lengths(SENTENCES))
    peer_name, version, theirs = peer(src, mask)
    expected: list[Found] = []
    models: list[Any] = []  # made when it is our turn, so that the peer has the memory to itself

    def measured_peer() -> None:
        assert theirs is not None
        expected[:] = theirs()

    def measured() -> None:
        if not models:
            models.append(fast_linears(network().to(device), dtype=WEIGHTS[kind]))
        answers = models[0].generate(src.to(device), mask.to(device), beam=BEAM, length_penalty=1.0, max_length=WRITTEN)
        found = [{hypothesis.ids for hypothesis in sentence} for sentence in answers]
        if expected and kind == "fp32" and peer is _marian and found != expected:
            raise EtudeError("the translations differ from transformers'")

    return Contest(
        name=f"transformer.beam.{name}",
        what=f"Transformer-Big, beam {BEAM}, {SENTENCES} sentences, {WRITTEN} tokens each, {kind} weights",
        amount=SENTENCES * WRITTEN,
        unit="tokens/s",
        ours=clock(measured),
        peer=clock(measured_peer) if theirs else None,
        peer_name=peer_name,
        peer_version=version,
        target=target,
        rounds=3,
        warmup=1,
    )


@dataclass(frozen=True)
class Smoothed(Task):
    """Cross-entropy with label smoothing over the target's tokens, without padding."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        packed: Any = model.packed
        logits, packing = packed(batch["source"], batch["read"], batch["source_mask"], batch["target_mask"])
        loss = F.cross_entropy(logits.float(), packing.pack(batch["target"]), label_smoothing=0.1)
        return loss, {"loss": loss.detach()}


def batch() -> Batch:
    """Pairs of sentences of about one length each, of some 2,048 target tokens in all."""
    rng = np.random.default_rng(1)
    counts = lengths(400, seed=2)
    counts = counts[: int(np.searchsorted(counts.cumsum(), TOKENS))]
    source, source_mask = sentences((counts * rng.uniform(0.8, 1.25, len(counts))).round().astype(int).clip(2), 3)
    target, target_mask = sentences(counts, 4)
    read = torch.cat([torch.full((len(target), 1), CONFIG.begin), target[:, :-1]], 1)
    return {"source": source, "source_mask": source_mask, "target": target, "target_mask": target_mask, "read": read}


def operations(said: Batch) -> float:
    """Floating-point operations of a training step's matrix products: 6 a weight and token."""
    d, f, layers = CONFIG.width, CONFIG.ffn, CONFIG.depth
    read, written = float(said["source_mask"].sum()), float(said["target_mask"].sum())
    encoder = layers * (4 * d * d + 2 * d * f) * read
    decoder = layers * ((6 * d * d + 2 * d * f) * written + 2 * d * d * read)
    return 6 * (encoder + decoder + VOCABULARY * d * written)


def _training(precision: Literal["fp32", "auto"], target: float | None) -> Contest:
    device = pick_device()
    said = {name: value.to(device) for name, value in batch().items()}
    version, theirs = marian()
    peer = None
    if theirs is not None:
        theirs = theirs.to(device)
        optimizer: list[torch.optim.Optimizer] = []
        labels = said["target"].masked_fill(~said["target_mask"], -100)

        def padded() -> float:
            if not optimizer:
                theirs.train()
                optimizer.append(torch.optim.Adam(theirs.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9))
            optimizer[0].zero_grad()
            logits = theirs(
                input_ids=said["source"],
                attention_mask=said["source_mask"].long(),
                decoder_input_ids=said["read"],
            ).logits
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
            loss.backward()
            optimizer[0].step()
            return loss.item()

        peer = clock(padded)
    recipe = Recipe(
        name="bench.transformer",
        model=CONFIG,
        data=Function(),
        task=Smoothed(),
        optim=Optim("adam", lr=1e-4, betas=(0.9, 0.98), eps=1e-9),
        schedule=Schedule("constant"),
        precision=precision,
    )
    tokens = int(said["target_mask"].sum())
    return Contest(
        name=f"transformer.training.{precision}",
        what=f"Transformer-Big training, {len(said['target'])} pairs, {tokens} target tokens, {precision}",
        amount=tokens,
        unit="tokens/s",
        ours=clock(engine_step(recipe, said)),
        peer=peer,
        peer_name="transformers MarianMTModel, padded, fp32, Adam",
        peer_version=version,
        target=target,
        operations=operations(said),
        precision=precision,
        rounds=3,
        warmup=1,
    )
