"""A folder as Opus-MT's are published, made here by transformers, opened and asked beside transformers."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from data.test_marian import PROSE, write_vocabulary
from etude import opus
from etude.errors import MissingError, RefusedError, UsageError

TEXTS = [
    "A text.",
    "Two layers, each reading the one before.",
    "",
    "x" * 60,
    *PROSE[:9],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("opus-mt-en-xx")
    write_vocabulary(path)
    ids = json.loads((path / "vocab.json").read_text())
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=len(ids), d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, activation_function="swish",
        scale_embedding=True, eos_token_id=ids["</s>"], pad_token_id=ids["<pad>"],
        decoder_start_token_id=ids["<pad>"], forced_eos_token_id=None, max_position_embeddings=300,
    )  # fmt: skip
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:
                p.normal_(std=0.25)
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, ids["</s>"]] += 2
    search = {"num_beams": 3, "max_length": 200, "bad_words_ids": [[ids["<pad>"]]]}
    for name, value in search.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    return path


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_translations_equal_transformers(folder):
    found = opus.open_folder(folder)
    assert (found.beam, found.length_penalty, found.max_length) == (3, 1.0, 200)
    translations = found.translate(TEXTS)
    tokenizer = MarianTokenizer.from_pretrained(str(folder))
    model: Any = MarianMTModel.from_pretrained(str(folder)).eval()
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    made = model.generate(**inputs)
    assert [t.text for t in translations] == tokenizer.batch_decode(made, skip_special_tokens=True)
    assert [t.source for t in translations] == TEXTS
    greedy = tokenizer.batch_decode(model.generate(**inputs, num_beams=1), skip_special_tokens=True)
    assert [t.text for t in found.translate(TEXTS, beam=1)] == greedy
    assert len({t.text for t in translations}) > 5 and translations[0].json()["source"] == "A text."


def test_batches_hold_every_sentence_once():
    lengths = [5, 100, 2000, 7, 4000, 30]
    found = opus.batches(lengths, tokens=3000)
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 3000 for batch in found)


def test_a_text_that_is_too_long(folder):
    with pytest.raises(UsageError, match="is too long: the model takes 200"):
        opus.open_folder(folder).translate(["word " * 500])


def copy(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bart"}, "model_type is 'bart'; only \"marian\" is known"),
        ({"normalize_before": True}, "normalize_before is True"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
        ({"decoder_ffn_dim": 64}, "feed-forward width 48 and its decoder's 64"),
        ({"activation_function": "qqq"}, "activation_function 'qqq' is not one of relu"),
        ({"d_model": 33}, "width 33"),
        ({"d_model": None}, "d_model is None, where a number belongs"),
        ({"vocab_size": 100}, "no id below 100"),
        ({"eos_token_id": 5}, "the vocabulary of another model"),
        ({"encoder_layers": 3}, "does not fit Transformer"),
    ],
)
def test_models_that_are_not_known_are_refused_in_one_line(folder, change, words, tmp_path):
    config = json.loads((copy(folder, tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RefusedError) as caught:
        opus.open_folder(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_settings_that_lack_or_are_wrong(folder, tmp_path):
    config = json.loads((copy(folder, tmp_path) / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text('{"num_beams": "four"}')
    with pytest.raises(RefusedError, match="num_beams is 'four', where a number above 0 belongs"):
        opus.open_folder(tmp_path)
    del config["d_model"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="it says no 'd_model'"):
        opus.open_folder(tmp_path)


def test_weights_that_lack_or_are_damaged(folder, tmp_path):
    weights = copy(folder, tmp_path) / "model.safetensors"
    (tmp_path / "pytorch_model.bin").write_bytes(b"nothing")
    tensors = load_file(weights)
    tensors.pop("model.encoder.layers.0.fc1.bias")
    save_file(tensors, weights)
    with pytest.raises(RefusedError, match="1 missing"):
        opus.open_folder(tmp_path)
    weights.unlink()
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin"):
        opus.open_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(MissingError, match=r"holds no model\.safetensors or pytorch_model\.bin"):
        opus.open_folder(tmp_path)


def test_weights_as_torch_saves_them(folder, tmp_path):
    weights = copy(folder, tmp_path) / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    weights.unlink()
    ours = opus.open_folder(tmp_path).translate(["A text."])
    assert ours == opus.open_folder(folder).translate(["A text."])
