"""Every recipe, on data in its official format: it builds, its loss falls, a death costs nothing, predict answers.

The digits and the karate club are the real ones. Data that cannot be had without a download is written here in the
official format: small pictures whose classes differ in brightness, small graphs whose classes differ in a word.
"""

import gzip
import json
import pickle
import struct
import zlib
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix

from etude.catalog import recipes
from etude.data.corpus import Corpus
from etude.data.detection import Boxed, Detection
from etude.data.graphs import Graph
from etude.data.images import Images
from etude.data.latents import Latents
from etude.data.masked import Masked
from etude.data.pairs import Pairs
from etude.data.patches import Patches
from etude.data.pictures import Pictures
from etude.data.remotes import REMOTES
from etude.data.scenes import Scenes
from etude.data.segmentation import Segmentation
from etude.data.sentences import Sentences
from etude.data.text import Text
from etude.data.tokenizers import WORDPIECE_SPECIAL
from etude.engine.checkpoint import digest
from etude.engine.parallel import World
from etude.engine.recipe import Ramp, Recipe
from etude.engine.study import train as train_study
from etude.engine.trainer import Trainer
from etude.recipes import find_recipe, find_study
from etude.tasks import detect, language_model, translate
from etude.tasks.superresolve import SuperResolveAdversarial
from etude.vision import mobilenet, resnet
from segmentation_files import write_mni152, write_nuclei, write_pair

CLASSES, SHOWN = 10, 6


def pictures(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 noise around a level that tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    level = 20 + labels * 22
    noise = rng.integers(-15, 16, (count, *shape))
    return (level.reshape(-1, *[1] * len(shape)) + noise).clip(0, 255).astype(np.uint8), labels.astype(np.uint8)


def write_idx(folder: Path) -> None:
    for prefix, count, seed in (("train", 120, 0), ("t10k", 30, 1)):
        images, labels = pictures(count, (28, 28), seed)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))


def write_cifar(folder: Path) -> None:
    for name, seed in [*((f"data_batch_{i}", i) for i in range(1, 6)), ("test_batch", 9)]:
        images, labels = pictures(30, (3072,), seed)
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], images], 1).tobytes())


def write_imagenet(folder: Path) -> None:
    for split, count, seed in (("train", 40, 0), ("val", 10, 1)):
        images, labels = pictures(count, (48, 56, 3), seed)
        for i, (image, label) in enumerate(zip(images, labels)):
            place = folder / split / f"n{label:08d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{place.name}_{i}.JPEG")


def write_graph(folder: Path, source: str, features: int, classes: int) -> None:
    """Thirty nodes a class, each with its class's word and a word of its own, in a ring of its class."""
    label = np.arange(30 * classes) % classes
    x = np.zeros((len(label), features), np.float32)
    x[np.arange(len(label)), label] = x[np.arange(len(label)), classes + np.arange(len(label))] = 1
    known, first = 2 * classes, 20 * classes
    if source == "packages":
        nodes = np.arange(len(label))
        edges = np.stack([nodes, (nodes + classes) % len(label)])
        train, validation, test = np.split(nodes, [known, first])
        names = np.array([f"package{i}" for i in nodes])
        np.savez(
            folder / "graph.npz",
            x=x,
            edges=edges,
            label=label,
            names=names,
            train=train,
            validation=validation,
            test=test,
        )
        return
    y, graph = np.eye(classes, dtype=np.int32)[label], defaultdict(list)
    for node in range(len(label)):
        graph[node] = [(node + classes) % len(label)]
    parts = {"x": csr_matrix(x[:known]), "allx": csr_matrix(x[:first]), "tx": csr_matrix(x[first:]), "y": y[:known],
             "ally": y[:first], "ty": y[first:], "graph": graph}  # fmt: skip
    for part, content in parts.items():
        (folder / f"ind.{source}.{part}").write_bytes(pickle.dumps(content, protocol=2))
    (folder / f"ind.{source}.test.index").write_text("\n".join(map(str, range(first, len(label)))))


def write_ztext(folder: Path) -> None:
    """Sentences of few words, in two testaments of two blocks each."""
    rng = np.random.default_rng(0)
    words = np.array(WORDS)
    for name in ("ot", "nt"):
        blocks = [" ".join(f"<w>{word}</w>" for word in rng.choice(words, 150)).encode() for _ in range(2)]
        packed = [zlib.compress(block) for block in blocks]
        (folder / f"{name}.bzz").write_bytes(b"".join(packed))
        offsets = (0, len(packed[0]))
        records = (struct.pack("<III", at, len(p), len(b)) for at, p, b in zip(offsets, packed, blocks))
        (folder / f"{name}.bzs").write_bytes(b"".join(records))


def write_pairs(folder: Path, source: str) -> None:
    """Each word has its translation, and the order is kept: enough for a loss to fall."""
    rng = np.random.default_rng(0)
    words = "file window open close menu click the print table cell".split()  # noqa: SIM905
    for split, count in (("train", 200), ("validation", 12), ("test", 12)):
        lines = [rng.choice(words, rng.integers(2, 7)).tolist() for _ in range(count)]
        for language, side in zip(source.split("-"), (lines, [[word[::-1] for word in line] for line in lines])):
            (folder / f"{split}.{language}").write_text("".join(" ".join(line) + "\n" for line in side))


def write_reviews(folder: Path) -> None:
    """Sentences in which one word tells the class, rated from -4 to 4."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(160):
        said = list(rng.choice(WORDS, rng.integers(3, 9)))
        said.insert(int(rng.integers(len(said))), ("dull", "fine")[i % 2])
        lines.append(f"{i + 1}\t{(-1.5, 2.25)[i % 2]}\t{' '.join(said)}\r\n")
    (folder / "movieReviewSnippets_GroundTruth.txt").write_text("".join(lines))
    for split, rows in (("train", lines[:120]), ("dev", lines[120:])):
        glue = [f"{row.split(chr(9))[2].strip()}\t{int(float(row.split(chr(9))[1]) > 0)}" for row in rows]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(glue) + "\n")
    (folder / "vocab.txt").write_text("\n".join([*WORDPIECE_SPECIAL, *sorted(set(WORDS)), "dull", "fine"]))


def write_faces(folder: Path) -> None:
    for i in range(30):
        noise = np.random.default_rng(i).integers(0, 256, (24, 20 + i, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")


def write_photographs(folder: Path) -> None:
    """Smooth pictures with edges, five to learn from and two for the test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        (folder / split).mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC).save(folder / split / f"{i}.png")


def write_photos(folder: Path) -> None:
    """Pictures of few colours, under the names of the photographs."""
    rng = np.random.default_rng(0)
    debian = REMOTES["photos"].debian
    assert debian is not None
    for file in debian.files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((100, 80), Image.Resampling.BICUBIC).save(folder / file.name)


def write_boxes(folder: Path, source: str) -> None:
    """Dark pictures with one or two bright rectangles, whose colour tells the class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        pictures = folder / "images" / split if source == "yolo" else folder / f"{split}2017"
        for place in (pictures, folder / "labels" / split, folder / "annotations"):
            place.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(12):
            array = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            lines = []
            for x, y in ((2, 4), (34, 20))[: 1 + i % 2]:
                label, w, h = int(rng.integers(2)), int(rng.integers(16, 28)), int(rng.integers(14, 26))
                array[y : y + h, x : x + w, label] = 220
                lines.append(f"{label} {(x + w / 2) / 64} {(y + h / 2) / 48} {w / 64} {h / 48}\n")
                annotations.append({"id": len(annotations), "image_id": i, "category_id": label, "bbox": [x, y, w, h]})
            Image.fromarray(array).save(pictures / f"{i}.jpg")
            (folder / "labels" / split / f"{i}.txt").write_text("".join(lines))
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
        document = {"images": images, "annotations": annotations, "categories": [{"id": 0}, {"id": 1}]}
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    (folder / "classes.txt").write_text("red\ngreen\n")


WORDS = "the earth was without form and light shone over its waters".split()  # noqa: SIM905
WRITERS = {
    "bible": write_ztext,
    "fashion-mnist": write_idx,
    "mnist": write_idx,
    "cifar10": write_cifar,
    "imagenet": write_imagenet,
    "photos": write_photos,
    "folder": write_faces,
}
BERT = {"model.width": 32, "model.depth": 2, "model.num_heads": 2, "model.ffn": 64, "model.positions": 24}


def small(name: str, folder: Path) -> Recipe:
    """The recipe with fewer and smaller samples and steps, and nothing else changed but the rate's pace."""
    recipe = find_recipe(name)
    changes: dict[str, Any] = {
        "steps": SHOWN,
        "batch_size": 20,
        "eval_every": 4,
        "log_every": 1,
        "save_every": 2,
        "keep": 9,
        "schedule.warmup": 0,
    }
    if isinstance(recipe.data, Graph):
        changes["batch_size"] = 2 * recipe.model.num_classes
        if recipe.data.source != "karate":
            write_graph(folder, recipe.data.source, recipe.model.in_features, recipe.model.num_classes)
            changes["data.path"] = str(folder)
        return recipe.with_(**changes)
    if isinstance(recipe.data, Pairs):
        write_pairs(folder, recipe.data.source)
        changes |= {"data.path": str(folder), "data.vocab_size": 300, "model.vocab_size": 300, "model.width": 32}
        changes |= {"model.depth": 2, "model.num_heads": 2, "model.ffn": 64, "batch_size": 200, "task.beam": 2}
        changes = (
            {"average": min(3, recipe.average)}
            | changes
            | ({"schedule.warmup": 100} if recipe.schedule.name == "noam" else {})
        )
        return recipe.with_(**changes)
    if isinstance(recipe.data, Corpus):
        write_ztext(folder)
        data = {"path": str(folder), "length": 24, "context": 12, "tokens": "bytes"}
        if recipe.data.tokens == "bpe":
            data |= {"tokens": "bpe", "vocab_size": 300}
        model = {"vocab_size": 0, "context": 32, "width": 48, "depth": 2, "num_heads": 4}
        ramp = Ramp(first=4, samples=60) if recipe.ramp.first else Ramp()
        recipe = replace(recipe, batch_size=20, accumulate=10 if ramp.first else 2, ramp=ramp)
        changes |= {f"data.{key}": value for key, value in data.items()} | {"optim.lr": 3e-3}
        return recipe.with_(**changes, **{f"model.{key}": value for key, value in model.items()})
    if isinstance(recipe.data, Sentences):
        write_reviews(folder)
        changes |= {"data.path": str(folder), "data.vocabulary": str(folder / "vocab.txt"), "data.test": 20}
        changes |= {
            "data.validation": 20,
            "start.weights": "",
            "data.length": 12,
            "model.vocab_size": 7 + len(set(WORDS)),
        }
        changes |= BERT | {"optim.lr": 3e-3}
        return recipe.with_(**changes)
    if isinstance(recipe.data, Masked):
        write_ztext(folder)
        changes |= {"data.path": str(folder), "data.vocab_size": 60, "data.length": 18, "optim.lr": 3e-3} | BERT
        changes["model.vocab_size"] = recipe.with_(**changes).data.open().facts["vocabulary"]
        return recipe.with_(**changes)
    if isinstance(recipe.data, Latents):
        return small_game(recipe, folder, changes)
    if isinstance(recipe.data, Segmentation):
        if recipe.data.source == "folder":
            for i in range(8):
                write_pair(folder, f"p{i}", seed=i)
        else:
            {"mni152": write_mni152, "nuclei": write_nuclei}[recipe.data.source](folder)
        changes |= {"data.path": str(folder), "data.size": 16, "batch_size": 8, "eval_batch_size": 4}
        return recipe.with_(**changes, **{"model.width": 8, "model.depth": 2, "optim.lr": 1e-2})
    if isinstance(recipe.data, Patches):
        write_photographs(folder)
        changes |= {
            "data.source": "folder",
            "data.path": str(folder),
            "data.size": 32,
            "data.reduce": 1,
            "batch_size": 8,
        }
        tiny = {"width": 8, "depth": 1, "growth": 4, "interpolates": False}
        if isinstance(recipe.task, SuperResolveAdversarial):
            changes |= {f"model.generator.{key}": value for key, value in tiny.items()}
            changes |= {"model.discriminator.side": 32, "model.discriminator.width": 4, "task.features": None}
            changes |= {"task.pixel_weight": 1.0, "optim.generator.lr": 1e-3}
        else:
            changes |= {f"model.{key}": value for key, value in tiny.items()}
            changes |= {"start.weights": "", "optim.lr": 3e-3}
        return recipe.with_(**changes)
    if isinstance(recipe.data, Boxed):
        changes |= {"data.size": 64, "batch_size": 4, "model.width": 0.125, "model.num_classes": 0, "optim.lr": 1e-3}
        changes |= {"data.path": str(folder), "data.multi_scale": 0.5}
        if isinstance(recipe.data, Scenes):
            write_photos(folder)
            write_idx(folder)
            changes |= {"data.clothes": str(folder), "data.train": 40, "data.test": 6, "data.multi_scale": 0.0}
            changes["optim.lr"] = 4e-3
        else:
            assert isinstance(recipe.data, Detection)
            write_boxes(folder, recipe.data.source)
        return recipe.with_(**changes)
    assert isinstance(recipe.data, Images | Text)
    if recipe.data.source in WRITERS:
        WRITERS[recipe.data.source](folder)
        changes["data.path"] = str(folder)
    if isinstance(recipe.model, resnet.Config):
        changes["model.width"] = 8
    if isinstance(recipe.model, mobilenet.ConfigV2):
        changes["model.width_multiplier"] = 0.25
    if recipe.data.source == "imagenet":
        changes |= {"data.size": 32, "model.num_classes": CLASSES, "batch_size": 8}
    if isinstance(recipe.data, Text):
        size = len(Text(path=str(folder)).open().vocabulary)
        changes |= {"data.length": 24, "data.context": 24, "model.vocab_size": size, "model.width": 48}
    if recipe.optim.name == "sgd":
        changes["optim.lr"] = 0.005 if "resnet" in name else 0.03
    return recipe.with_(**changes)


def small_game(recipe: Recipe, folder: Path, changes: dict[str, Any]) -> Recipe:
    """Few, small and narrow pictures, or few points."""
    if not isinstance(recipe.data, Pictures):
        return recipe.with_(**changes | {"data.train": 90, "data.test": 60, "model.width": 16})
    WRITERS[recipe.data.source](folder)
    changes |= {"data.path": str(folder), "data.validation": min(20, recipe.data.validation), "data.patches": 60}
    if recipe.data.source != "fashion-mnist":
        changes |= {"data.side": 16, "model.side": 16}
    if recipe.name.startswith("progan"):
        growth = {"model.stable": 16, "model.fading": 32, "task.batch_sizes": (16, 8), "batch_size": 16}
        return recipe.with_(**changes | growth | {"model.width_max": 8, "model.width_base": 64})
    return recipe.with_(**changes | {"model.width": 8})


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, and evaluations that write and draw less. Texts are longer than the small models' context."""
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(language_model, "WRITTEN", 40)
    monkeypatch.setattr(translate, "Search", partial(translate.Search, max_length=12))
    monkeypatch.setattr(detect, "SHOWN", 2)


def trainer(recipe: Recipe, directory: Path) -> Trainer:
    directory.mkdir(exist_ok=True)
    return Trainer(recipe, directory, world=World(torch.device("cpu")), quiet=True)


@pytest.mark.parametrize("name", recipes())
def test_it_builds_at_its_own_size(name):
    """The other tests take narrow networks. What only the data can tell, a size of 0, is a few."""
    config = find_recipe(name).model
    told = {field: 7 for field in ("vocab_size", "num_classes") if getattr(config, field, None) == 0}
    with torch.device("meta"):
        assert any(True for _ in replace(config, **told).build().parameters())


@pytest.mark.parametrize("name", recipes())
def test_recipe(name, tmp_path):
    (tmp_path / "data").mkdir()
    recipe = small(name, tmp_path / "data")
    whole = trainer(recipe, tmp_path / "whole")
    result = whole.fit()
    limit = 1000 if isinstance(recipe.data, Latents) else 50
    assert result["steps"] == SHOWN and 0 <= result["eval"][recipe.task.measure] < limit

    class Died(Exception):
        pass

    def die(logs):
        if dying.step == 5:
            raise Died
        record(logs)

    dying = trainer(recipe, tmp_path / "stopped")
    record, dying._record = dying._record, die
    with pytest.raises(Died):
        dying.fit()
    resumed = trainer(recipe, tmp_path / "stopped")
    resumed.resume()
    assert resumed.step == 4
    resumed.fit()
    assert {g: digest(t) for g, t in resumed.tensors().items()} == {g: digest(t) for g, t in whole.tensors().items()}
    logs = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "stopped")]
    assert logs[0] == logs[1]

    whole.model.eval()
    asked = [raw for _, raw in whole.dataset.samples("test", 3)]
    facts = whole.dataset.facts | {"files": whole.dataset.files}
    answers = recipe.task.predict(whole.model, asked, recipe.data, facts)
    assert len(answers) == len(asked) and json.dumps([answer.json() for answer in answers])
    if isinstance(recipe.data, Images | Graph):
        assert all(answer.row()[0] in whole.dataset.facts["classes"] for answer in answers)


@pytest.mark.parametrize("name", recipes())
def test_loss_falls(name, tmp_path):
    """On one batch that is seen again and again, the loss falls to less than two thirds."""
    (tmp_path / "data").mkdir()
    recipe = small(name, tmp_path / "data").with_(**{"ema": None, "steps": 100, "schedule.name": "constant"})
    recipe = recipe.with_(**{"precision": "fp32", "ramp.first": 0, "accumulate": min(2, recipe.accumulate)})
    if isinstance(recipe.data, Latents):  # the critic's, while the generator stands still
        still = {"optim.generator.lr": 1e-12, "optim.critic.lr": max(3e-3, recipe.optim.critic.lr)}
        recipe = recipe.with_(**still | ({"model.stable": 10**6} if name.startswith("progan") else {}))
    elif hasattr(recipe.model, "dropout"):
        recipe = recipe.with_(**{"model.dropout": 0.0})
    learner = trainer(recipe, tmp_path / "run")
    learner.model.train()
    batch = learner.dataset.finish(learner.dataset.batch(seed=0, step=0, batch_size=recipe.batch_size))
    losses = []
    for step in range(90 if isinstance(recipe.data, Graph) else 30):
        learner.step = step
        logs = learner.take_step(batch)
        losses.append(next(logs[n] for n in ("loss", "critic/loss", "generator/loss") if n in logs).item())
    assert min(losses[-3:]) < losses[0] - abs(losses[0]) / 3


def test_clipping_is_studied(tmp_path):
    """Every variant trains, and only what is clipped differs from the first step on."""
    write_ztext(tmp_path)
    found = find_study("rnn.clipping")
    size = len(Text(path=str(tmp_path)).open().vocabulary)
    changes = {"data.path": str(tmp_path), "data.length": 24, "model.vocab_size": size, "model.width": 16}
    base = found.base.with_(**changes, steps=4, eval_every=4, log_every=1)
    done = train_study(found.with_base(base), run=tmp_path / "study", quiet=True)
    outcomes = done.result["variants"]
    assert list(outcomes) == ["no-clip", "clip-10", "clip-1", "clip-0.1", "no-clip-lr-0.1"]
    assert all(outcome["state"] == "done" for outcome in outcomes.values())
    first = [run.metrics[0]["loss"] for run in done.runs.values()]
    assert len(set(first)) == 1
    assert outcomes["clip-0.1"]["test"] != outcomes["no-clip"]["test"]
