"""Segmentation: losses by their formulas, measures, answers as pictures and volumes, one command on a folder."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from etude.cli import main
from etude.data import decode
from etude.data.masks import IGNORED
from etude.data.segmentation import Segmentation
from etude.engine.fit import train
from etude.errors import UsageError
from etude.recipes import find_recipe
from etude.tasks import overlay
from etude.tasks.segment import Mask, Segment, Tiles, dice_loss, pixel_loss
from segmentation_files import opened, write_pair, write_volume

LOGITS = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))


def test_cross_entropy_with_weights():
    p = LOGITS.softmax(1).gather(1, MASK[:, None])[:, 0]
    torch.testing.assert_close(pixel_loss(LOGITS, MASK), -p.log().mean())
    weight = torch.rand(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(pixel_loss(LOGITS, MASK, weight), -(weight * p.log()).mean())
    by_class = (0.2, 1.0, 3.0)
    expected = F.cross_entropy(LOGITS, MASK, torch.tensor(by_class, dtype=torch.float64))
    torch.testing.assert_close(pixel_loss(LOGITS, MASK, None, by_class), expected)


def test_focal_loss():
    """-(1 - p)^2 log p; with gamma 0 it is the cross-entropy."""
    p = LOGITS.softmax(1).gather(1, MASK[:, None])[:, 0]
    torch.testing.assert_close(pixel_loss(LOGITS, MASK, gamma=2.0), (-((1 - p) ** 2) * p.log()).mean())
    sure = torch.zeros(1, 2, 1, 1, requires_grad=True)
    pixel_loss(sure + torch.tensor([60.0, 0.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1).long(), gamma=0.5).backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


def test_dice_loss():
    p = LOGITS.softmax(1)
    expected = []
    for label in (1, 2):
        g = F.one_hot(MASK, 3)[..., label].double()
        expected.append(1 - (2 * (p[:, label] * g).sum() + 1) / (p[:, label].sum() + g.sum() + 1))
    torch.testing.assert_close(dice_loss(LOGITS, MASK), torch.stack(expected).mean())
    perfect = 50 * F.one_hot(MASK, 3).movedim(-1, 1).double()
    assert dice_loss(perfect, MASK) < 1e-9


@pytest.mark.parametrize("kind", ["cross-entropy", "dice", "both", "focal"])
def test_ignored_pixels_change_nothing(kind):
    task = Segment(loss_by=kind, class_weights=(1.0, 2.0, 0.5))
    wide, masked = torch.cat([LOGITS, 9 * LOGITS], 2), torch.cat([MASK, torch.full_like(MASK, IGNORED)], 1)
    torch.testing.assert_close(task.of(wide, masked), task.of(LOGITS, MASK))


def test_both_is_the_sum():
    both = Segment().of(LOGITS, MASK)
    torch.testing.assert_close(both, Segment(loss_by="cross-entropy").of(LOGITS, MASK) + dice_loss(LOGITS, MASK))


class Threshold(nn.Module):
    """A network that takes bright for class 1, a little too much of it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.cat([-self.scale * x[:, :1], self.scale * (x[:, :1] + self.offset)], 1)

    offset = 0.0


@pytest.fixture
def pairs(tmp_path) -> Segmentation:
    for i in range(5):
        write_pair(tmp_path / "train", f"p{i}", seed=i)
        write_pair(tmp_path / "test", f"p{i}", shape=(20, 24 + i % 2), seed=i)
    return Segmentation(path=str(tmp_path), size=16, channels=1)


def evaluated(data: Segmentation, task: Segment, world: int = 1) -> list[dict]:
    dataset, network = data.open(), Threshold()
    network.offset = 1.9
    return [
        task.evaluate_on(
            dataset,
            network,
            (
                dataset.finish(dataset.fetch("test", span))
                for span in dataset.spans("test", batch_size=2, rank=r, world=world)
            ),
        )
        for r in range(world)
    ]


def test_measures_and_figures(pairs):
    (measured,) = evaluated(pairs, Segment())
    values = {name: metric.value() for name, metric in measured.items()}
    assert values["dice"] == values["dice_object"] > 0.5 and values["iou"] < values["dice"] and values["hd95"] > 0
    merged, *others = evaluated(pairs, Segment(), world=3)
    for other in others:
        for name, metric in other.items():
            merged[name].merge(metric)
    same = {name: metric.value() for name, metric in merged.items()}
    assert same.pop("loss") == pytest.approx(values.pop("loss"), rel=1e-12) and same == values
    (tiles,) = evaluated(pairs, Segment(tile=16, context=0))
    assert tiles["dice"].value() == values["dice"]
    table, pictures = Segment().figures(measured, pairs.open(), "test")
    assert table["rows"][0][0] == "mean" and len(table["rows"]) == 2
    assert [item["caption"].partition(":")[0] for item in pictures["items"]] == ["best", "median", "worst"]
    assert json.dumps([table, pictures])


def test_large_pictures_go_by_tiles(pairs):
    """The same answer, and the network never sees more than a tile and its surroundings."""
    seen = []

    class Watched(Threshold):
        def forward(self, x):
            seen.append(x.shape[-2] * x.shape[-1])
            return super().forward(x)

    data, facts = pairs, pairs.open().facts
    big = np.random.default_rng(0).integers(0, 255, (150, 190)).astype(np.uint8)
    whole = Segment().predict(Watched(), [big], data, facts)[0]
    assert seen == [150 * 190]
    for task, ask in ((Segment(tile=64, context=8), None), (Segment(), Tiles(tile=64, context=8))):
        seen.clear()
        pieces = task.predict(Watched(), [big], data, facts, ask)[0]
        assert np.array_equal(pieces.mask, whole.mask) and len(seen) == 9 and max(seen) <= (64 + 16) ** 2


def test_masks_are_saved_as_they_were_given(tmp_path, pairs):
    task, facts = Segment(), pairs.open().facts
    path = Path(pairs.path) / "test/images/p0.png"
    (answer,) = task.predict(Threshold(), [path], pairs, facts)
    assert isinstance(answer, Mask) and answer.json()["shape"] == [20, 24]
    assert sum(answer.shares.values()) == pytest.approx(1) and "object" in answer.row()[0]
    answer.save(tmp_path / "a.png")
    saved = decode.open_values(tmp_path / "a.png")
    assert set(np.unique(saved)) == {0, 255} and np.array_equal(saved > 0, answer.mask > 0)
    drawn = np.asarray(decode.open_image(tmp_path / "a-overlay.png"))
    assert drawn.shape[0] > 20 and drawn.shape[1] >= 24
    wide = replace(answer, values=(0, 1000))
    wide.save(tmp_path / "b.png")
    assert decode.open_values(tmp_path / "b.png").max() == 1000
    answer.save(tmp_path / "C.PNG")
    for name in ("c.jpg", "c.nii.gz", "c"):  # JPEG does not keep the values
        with pytest.raises(UsageError, match=rf"{name}: .* as PNG, and the name must end in \.png"):
            answer.save(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_volumes_are_answered_on_their_own_grid(tmp_path, pairs):
    write_volume(tmp_path, "v", (12, 14, 20), spacing=(2.0, 1.0, 3.0))
    path = tmp_path / "images/v.nii.gz"
    (answer,) = Segment(tile=16).predict(Threshold(), [path], pairs, pairs.open().facts)
    out = tmp_path / f"o{answer.suffix}"
    answer.save(out)
    given, saved = opened(path), opened(out)
    np.testing.assert_allclose(saved.affine, given.affine)
    bright = np.asarray(given.dataobj) > np.mean(np.percentile(np.asarray(given.dataobj), (0.5, 99.5)))
    assert ((np.asarray(saved.dataobj) == 255) == bright).mean() > 0.99
    share = (np.asarray(saved.dataobj) == 255).mean()
    assert answer.json()["millilitres"]["object"] == pytest.approx(share * 12 * 14 * 20 * 6 / 1000)
    assert "ml" in answer.row()[0] and (tmp_path / "o-overlay.png").is_file()
    with pytest.raises(UsageError, match=r"as NIfTI, and the name must end in \.nii or \.nii\.gz") as caught:
        answer.save(tmp_path / "o.png")
    assert caught.value.hint == str(tmp_path / "o.nii.gz") and not (tmp_path / "o.png").exists()


def test_overlays():
    picture = Image.new("RGB", (40, 30), (100, 100, 100))
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 5:30] = 1
    drawn = np.asarray(overlay.overlay(picture, mask))
    assert (drawn[0, 0] == 100).all() and tuple(drawn[5, 5]) == overlay.COLOURS[0]
    assert tuple(drawn[10, 10]) == tuple(int(100 + 0.35 * (c - 100)) for c in overlay.COLOURS[0])
    assert overlay.colour(1) == overlay.colour(1 + len(overlay.COLOURS)) != overlay.colour(2)
    named = overlay.legend(picture, ["background", *(f"class {i}" for i in range(9))])
    assert named.width >= 40 and named.height > 60
    assert overlay.beside([picture] * 5, columns=2).size == (40 * 2 + 6, 30 * 3 + 12)
    assert overlay.shrunk(picture, 20).size == (20, 15) and overlay.shrunk(picture, 99) is picture


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_by": "hinge"}, "task.loss_by is 'hinge'"),
        ({"gamma": -1.0}, "task.gamma -1"),
        ({"class_weights": (1.0, -1.0)}, "are not negative"),
        ({"tile": 2}, "task.tile is 2"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        Segment(**settings)


@pytest.mark.parametrize(
    ("asked", "message"), [({"tile": 2}, "^tile is 2; it must be"), ({"context": -1}, "^context is -1; it must not")]
)
def test_tiles_that_cannot_be_asked_for(asked, message):
    with pytest.raises(UsageError, match=message):
        Tiles(**asked)


def small(data: Segmentation, **changes: Any):
    recipe = replace(find_recipe("unet.folder"), data=data)
    tiny = {"model.width": 4, "model.depth": 2, "model.in_channels": data.channels, "steps": 2, "batch_size": 2}
    return recipe.with_(**tiny, **changes)


def test_models_and_data_that_do_not_fit(pairs):
    for changes, message in (
        ({"model.num_classes": 4}, "4 outputs, the data 2 classes"),
        ({"task.class_weights": (1.0, 1.0, 1.0)}, "3 entries for 2 classes"),
    ):
        with pytest.raises(UsageError, match=message):
            train(small(pairs).with_(**changes), run=Path(pairs.path) / "run", quiet=True)


@pytest.mark.parametrize(
    ("channels", "taken", "hint"),
    [
        (1, 3, "--data.channels 3 or --model.in-channels 1"),
        (3, 1, "--data.channels 1 or --model.in-channels 3"),
        (3, 2, "--model.in-channels 3"),
    ],
)
def test_channels_that_do_not_fit_are_told_with_the_remedy(pairs, channels, taken, hint):
    recipe = small(replace(pairs, channels=channels)).with_(**{"model.in_channels": taken})
    with pytest.raises(UsageError) as caught:
        train(recipe, run=Path(pairs.path) / "run", quiet=True)
    assert str(caught.value) == f"the model takes pictures of {taken} channels, and the data's have {channels}"
    assert caught.value.hint == hint and not (Path(pairs.path) / "run").exists()


def test_a_folder_job_goes_on_with_the_rest(tmp_path, pairs, capsys):
    """Train on a folder by one command, then ask about a folder in which some files are bad."""
    run = train(small(pairs), run=tmp_path / "run", quiet=True)
    assert run.recipe.model.num_classes == 2 and math.isfinite(run.result["eval"]["loss"])
    asked = tmp_path / "asked"
    asked.mkdir()
    (asked / "zero.png").write_bytes(b"")
    Image.new("CMYK", (30, 20), (0, 0, 0, 255)).save(asked / "cmyk.jpg")
    Image.new("1", (1, 1)).save(asked / "one.png")
    write_volume(tmp_path, "scan")
    (tmp_path / "images/scan.nii.gz").rename(asked / "scan.nii.gz")
    (asked / "bad.nii.gz").write_bytes((asked / "scan.nii.gz").read_bytes()[:99])
    command = [sys.executable, "-m", "etude", "predict", str(run.path), str(asked), "--save", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert sum("zero.png" in line for line in lines) == sum("bad.nii.gz" in line for line in lines) == 1
    assert "Traceback" not in done.stderr
    saved = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"cmyk.png", "cmyk-overlay.png", "one.png"} <= set(saved)
    assert any(name.startswith("scan") and name.endswith(".nii.gz") for name in saved)
    assert decode.open_values(tmp_path / "out/one.png").shape == (1, 1)
    capsys.readouterr()
    assert main(["predict", str(run.path), str(asked), "--tile", "2"]) == 2  # said once, not for each input
    assert capsys.readouterr().err == "etude: tile is 2; it must be 16 or more (try: --tile 512)\n"
