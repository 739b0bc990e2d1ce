"""BERT-base beside transformers, which is given its defaults: sentences padded to the longest of each batch, fp32.

Inference: 256 sentences of 20 tokens on average from their ids to hidden states, of which the mean over each sentence's
tokens is kept and compared. Training: steps of sentence classification, 16 x 64 tokens, AdamW, dropout 0.1 throughout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.bench import Contest, Skipped, clock
from etude.bench.step import engine_step, operations_of, where_bf16
from etude.data import fetch, pieces
from etude.data.base import Batch
from etude.data.sentences import SentenceDataset, Sentences
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import pick_device
from etude.engine.recipe import Recipe
from etude.errors import EtudeError, MissingError
from etude.language import bert
from etude.tasks.sentences import ClassifySentences, in_chunks
from etude.weights import load_weights

SENTENCES, PADDED = 256, 32
"""Sentences, and how many the peer takes at once."""
BATCH, LENGTH = 16, 64
COSINE = 0.999
"""Between the embeddings in bf16 and in fp32, on the weights of MiniLM."""


def contests(*, compiled: bool = False) -> list[Contest | Skipped]:
    """Targets: 2.4 times in fp32 and 5 in bf16; 1.6 in training. `compiled` changes nothing here."""
    what = f"BERT-base, {SENTENCES} sentences, bf16"
    bf16 = where_bf16("bert.inference.bf16", what, lambda: _inference(torch.bfloat16, 5.0))
    return [_inference(torch.float32, 2.4), bf16, _training()]


def sentences(vocabulary: int) -> list[pieces.Pieces]:
    """Ids at random. Their number is gamma-distributed as a sentence's words are about: 3 to 128, 20 on average."""
    rng = np.random.default_rng(0)
    lengths = rng.gamma(2.5, 8, SENTENCES).round().astype(int).clip(3, 128)
    return [pieces.Pieces(rng.integers(1, vocabulary, n), n) for n in lengths.tolist()]


def _inference(dtype: torch.dtype, target: float) -> Contest:
    device = pick_device()
    config = bert.sizes["bert-base-uncased"]
    said = sentences(config.vocab_size)
    embedder = bert.EmbedderConfig(vocab_size=config.vocab_size).build().eval()
    version, theirs = _transformers(embedder.encoder, config)
    peer = None
    if theirs is not None:
        theirs = theirs.to(device)

        def padded() -> Tensor:
            means = []
            for start in range(0, len(said), PADDED):
                batch = pieces.pad([one.ids for one in said[start : start + PADDED]], 0)
                ids, mask = batch["ids"].to(device), batch["mask"].to(device).long()
                hidden = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
                means.append(F.normalize((hidden * mask[:, :, None]).sum(1), dim=1))
            return torch.cat(means).cpu()

        peer = torch.inference_mode()(padded)
    expected: Tensor | None = None
    ours = embedder.to(device, dtype)

    @torch.inference_mode()
    def packed() -> Tensor:
        return in_chunks(said, lambda batch: ours(**batch).float(), ours, 0)

    def measured_peer() -> Tensor:
        nonlocal expected
        assert peer is not None
        expected = peer()
        return expected

    def measured() -> Tensor:
        answer = packed()
        if expected is not None and dtype == torch.float32:
            difference = float((answer - expected).norm() / expected.norm())
            if difference > 1e-4:
                raise EtudeError(f"the answers differ by {difference:.1e}")
        return answer

    name = "fp32" if dtype == torch.float32 else "bf16"
    mean = sum(one.whole for one in said) / SENTENCES
    return Contest(
        name=f"bert.inference.{name}",
        what=f"BERT-base, {SENTENCES} sentences of {mean:.1f} tokens on average, {name}",
        amount=SENTENCES,
        unit="sentences/s",
        ours=clock(measured),
        peer=clock(measured_peer) if peer else None,
        peer_name="transformers BertModel, padded, fp32",
        peer_version=version,
        target=target,
        note="" if name == "fp32" else kept(lambda model: model.to(dtype), COSINE),
        operations=operations_of(packed),
        precision=name,
        rounds=5,
        warmup=1,
    )


def _transformers(encoder: bert.Encoder, config: bert.Dimensions) -> tuple[str | None, Any]:
    """The peer's version and its model, whose weights ours are made; none where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None, None
    theirs = transformers.BertModel(transformers.BertConfig(vocab_size=config.vocab_size)).eval()
    load_weights(encoder, theirs.state_dict(), source="transformers")
    return transformers.__version__, theirs


def kept(altered: Callable[[nn.Module], nn.Module], least: float) -> str:
    """How much of MiniLM's embeddings stays when the model is `altered`, in words; EtudeError where a cosine with what
    it was is below `least`."""
    try:
        path = fetch.path("minilm") / "model.safetensors"
    except MissingError:
        return "cosine not measured: etude data get minilm"
    model = load_weights(bert.sizes["bert-minilm-embedder"].build(), path, source="transformers").eval()
    said = sentences(bert.UNCASED)
    with torch.inference_mode():
        exact = in_chunks(said, lambda batch: model(**batch), model, 0)
        other = altered(model)
        answer = in_chunks(said, lambda batch: other(**batch).float(), other, 0)
    cosine = F.cosine_similarity(exact, answer)
    if (found := float(cosine.min())) < least:
        raise EtudeError(f"an embedding's cosine with fp32 is {found:.5f}, below {least}")
    return f"cosine with fp32 on MiniLM's weights: mean {float(cosine.mean()):.5f}, least {found:.5f}"


@dataclass(frozen=True)
class Noise(Sentences):
    """Sentences of ids at random: speed does not depend on what they say."""

    def open(self) -> "NoiseDataset":
        return NoiseDataset(self)


class NoiseDataset(SentenceDataset):
    def __init__(self, data: Noise):
        self.data = data
        self.sizes = {"train": BATCH, "test": BATCH}
        self.facts = {"classes": ["0", "1"], "sizes": self.sizes, "vocabulary": bert.UNCASED}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(1, bert.UNCASED, (len(indices), LENGTH), generator=g)
        label = torch.arange(len(indices)) % 2
        return {
            "ids": ids,
            "mask": torch.ones_like(ids, dtype=torch.bool),
            "label": label,
            "index": torch.arange(len(ids)),
        }


def _training() -> Contest:
    device = pick_device()
    data = Noise(length=LENGTH)
    batch = {name: value.to(device) for name, value in data.open().batch(seed=0, step=0, batch_size=BATCH).items()}
    peer, version = None, None
    try:
        import transformers
    except ImportError:
        transformers = None
    if transformers is not None:
        torch.manual_seed(0)
        version = transformers.__version__
        theirs: Any = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=bert.UNCASED))
        theirs.to(device).train()
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=2e-5)

        def plain() -> float:
            optimizer.zero_grad()
            answer = theirs(input_ids=batch["ids"], attention_mask=batch["mask"].long(), labels=batch["label"])
            answer.loss.backward()
            optimizer.step()
            return answer.loss.item()

        peer = plain
    recipe = Recipe(
        name="bench.bert",
        model=bert.ClassifierConfig(vocab_size=bert.UNCASED),
        data=data,
        task=ClassifySentences(),
        optim=Optim("adamw", lr=2e-5, weight_decay=0.01),
        schedule=Schedule("constant"),
        batch_size=BATCH,
    )
    step = engine_step(recipe, batch)
    return Contest(
        name="bert.training",
        what=f"BERT-base b{BATCH} x {LENGTH} fine-tuning, auto precision, by the engine's step",
        amount=BATCH * LENGTH,
        unit="tokens/s",
        ours=clock(step),
        peer=clock(peer) if peer else None,
        peer_name="transformers in a plain fp32 loop",
        peer_version=version,
        target=1.6,
        operations=operations_of(step),
        rounds=5,
        warmup=1,
    )
