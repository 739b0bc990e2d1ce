"""Opus-MT models as they are published, opened: config.json, the weights, source.spm, target.spm and vocab.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from etude.data import marian
from etude.errors import MissingError, RefusedError, UsageError
from etude.language import transformer
from etude.weights import load_weights

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "tanh": "tanh", "sigmoid": "sigmoid"}
"""transformers' names -> ours."""
FIXED = {
    # what Marian's models say alike, and what they mean where they say nothing
    "model_type": "marian",
    "scale_embedding": True,
    "static_position_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
}
COUNTS = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "depth": "encoder_layers",
    "decoder_depth": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "ffn": "encoder_ffn_dim",
    "padding": "pad_token_id",
    "begin": "decoder_start_token_id",
    "end": "eos_token_id",
}
"""Fields of our Config, and what config.json calls them."""
SHARES = {"dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0}
"""Those of one name, and what they are where config.json does not say."""
TOKENS = 3000
"""Source tokens that are translated at once."""


@dataclass(frozen=True)
class Translation:
    source: str
    text: str
    score: float
    """The sum of the log-probabilities of its tokens over length^alpha."""

    def json(self) -> dict[str, Any]:
        return {"source": self.source, "translation": self.text, "score": self.score}


@dataclass(frozen=True)
class Opus:
    """A model and its vocabulary. Usage: `open_folder("opus-mt-en-de").translate(["A sentence."])`."""

    model: transformer.Transformer
    vocabulary: marian.MarianVocabulary
    beam: int
    length_penalty: float
    max_length: int
    """Search as the model's authors set it."""

    @torch.no_grad()
    def translate(
        self,
        texts: Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        penalty: Literal["length", "gnmt"] = "length",
        max_length: int | None = None,
    ) -> list[Translation]:
        """The best translation of each text, in their order; what is None is as published.

        UsageError for a text longer than the model was trained for, or that asks for an unknown target language.
        """
        sources = [self.vocabulary.encode(text) for text in texts]
        for text, ids in zip(texts, sources):
            if len(ids) > self.max_length:
                raise UsageError(
                    f"a text of {len(ids)} tokens ({text[:40]!r} ...) is too long: the model takes {self.max_length}",
                    hint="one sentence at a time",
                )
        found: dict[int, Translation] = {}
        for batch in batches([len(ids) for ids in sources]):
            longest = max(len(sources[i]) for i in batch)
            src = torch.full((len(batch), longest), self.vocabulary.padding)
            for row, i in zip(src, batch):
                row[: len(sources[i])] = torch.tensor(sources[i])
            lengths = torch.tensor([len(sources[i]) for i in batch])
            answers = self.model.generate(
                src.to(self.model.embedding.weight.device),
                (torch.arange(longest) < lengths[:, None]).to(self.model.embedding.weight.device),
                beam=self.beam if beam is None else beam,
                length_penalty=self.length_penalty if length_penalty is None else length_penalty,
                penalty=penalty,
                max_length=self.max_length if max_length is None else max_length,
            )
            for i, (best, *_) in zip(batch, answers):
                found[i] = Translation(texts[i], self.vocabulary.decode(best.ids), best.score)
        return [found[i] for i in range(len(texts))]


def batches(lengths: Sequence[int], tokens: int = TOKENS) -> list[list[int]]:
    """Indices of sentences of about one length, at most `tokens` a batch where a sentence has no more alone."""
    found: list[list[int]] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not found or total + lengths[i] > tokens:
            found.append([])
            total = 0
        found[-1].append(i)
        total += lengths[i]
    return found


def open_folder(folder: str | Path) -> Opus:
    """The model in an Opus-MT folder, in eval mode on the CPU. MissingError where a file lacks; RefusedError, in one
    line, where one is damaged, is of another kind of model, or does not fit the others."""
    folder = Path(folder)
    path = folder / "config.json"
    document = marian.read_json(path)
    try:
        config = config_of(document)
    except (ValueError, KeyError) as error:
        lacking = f"it says no {error}" if isinstance(error, KeyError) else str(error)
        raise RefusedError(f"{path} is refused: {lacking}") from None
    vocabulary = marian.read(folder)
    if max(vocabulary.pieces) >= config.vocab_size or {vocabulary.padding, vocabulary.end} != {
        config.padding,
        config.end,
    }:
        raise RefusedError(f"{folder / 'vocab.json'} is the vocabulary of another model than {path}")
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise MissingError(f"{folder} holds no {' or '.join(WEIGHTS)}")
    model = config.build()
    load_weights(model, files[0], source="transformers")
    search = document | (marian.read_json(path) if (path := folder / "generation_config.json").is_file() else {})
    return Opus(
        model.eval(),
        vocabulary,
        beam=_number(search, "num_beams", 1, int),
        length_penalty=_number(search, "length_penalty", 1.0, float),
        max_length=_number(search, "max_length", 512, int),
    )


def config_of(document: dict[str, Any]) -> transformer.Config:
    """The `Config` that a config.json of transformers' MarianMTModel describes. RefusedError says what is not known."""
    for name, meant in FIXED.items():
        if (said := document.get(name, meant)) != meant:
            raise RefusedError(f"{name} is {said!r}; only {json.dumps(meant)} is known")
    for ours, theirs in (("attention_heads", "heads"), ("ffn_dim", "feed-forward width")):
        encoder, decoder = document[f"encoder_{ours}"], document[f"decoder_{ours}"]
        if encoder != decoder:
            raise RefusedError(f"its encoder's {theirs} {encoder} and its decoder's {decoder} are not alike")
    activation = document.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise RefusedError(f"activation_function {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    whole = {ours: document[theirs] for ours, theirs in COUNTS.items()}
    shares = {name: document.get(name, default) for name, default in SHARES.items()}
    for name, value in (whole | shares).items():
        if isinstance(value, bool) or not isinstance(value, int if name in whole else int | float):
            raise RefusedError(f"{COUNTS.get(name, name)} is {value!r}, where a number belongs")
    return transformer.Config(
        **whole,
        **shares,
        activation=ACTIVATIONS[activation],  # pyright: ignore[reportArgumentType]
        positions="marian",
        output_bias=True,
    )


def _number(document: dict[str, Any], name: str, default: Any, kind: type) -> Any:
    value = document.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
        raise RefusedError(f"{name} is {value!r}, where a number above 0 belongs")
    return kind(value)
