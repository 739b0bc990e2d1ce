"""Pictures and points to be made, and the random numbers that come with them."""

import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from etude.data import order, photos, pictures
from etude.data.folder import path_hash
from etude.data.latents import FIXED, drawn
from etude.data.pictures import Pictures, levels, scaled
from etude.data.ring import Ring
from etude.errors import EtudeError, MissingError, UsageError


def test_normal_numbers():
    """Mean, variance and independence of 400,000 numbers; number j does not depend on how many are drawn."""
    x = order.normal(3, 1, np.arange(4000), 100)
    assert x.shape == (4000, 100)
    assert abs(x.mean()) < 0.005 and x.var() == pytest.approx(1, abs=0.01)
    assert (x**4).mean() == pytest.approx(3, abs=0.06)
    assert np.abs(np.corrcoef(x[:, :6].T) - np.eye(6)).max() < 0.06
    np.testing.assert_array_equal(order.normal(3, 1, np.arange(4000), 7), x[:, :7])
    np.testing.assert_array_equal(order.normal(3, 1, np.array([17]), 100)[0], x[17])
    u = order.uniform(3, 1, np.array([17]), 2, order.NOISE)[0]
    assert x[17, 0] == np.sqrt(-2 * np.log(1 - u[0])) * np.cos(2 * np.pi * u[1])


def folder(root: Path, count: int = 12) -> Path:
    """Pictures of mixed sizes and modes."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"]
    for i in range(count):
        mode, size = modes[i % len(modes)], (40 + 7 * i, 36 + 5 * (i % 3))
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
            "L" if mode == "LA" else "RGB"
        )
        image.convert(mode).save(root / f"{i:02d}.{'jpg' if mode in ('RGB', 'L', 'CMYK') else 'png'}")
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_mixed_sizes_and_modes(tmp_path, channels):
    data = Pictures(source="folder", path=str(folder(tmp_path / "own")), side=16, channels=channels, noise=6)
    dataset = data.open()
    assert sum(dataset.sizes.values()) == 12 and dataset.sizes["test"] >= 1
    batch = dataset.batch(seed=1, step=0, batch_size=4)
    assert batch["image"].shape == (4, channels, 16, 16) and batch["image"].dtype == torch.uint8
    assert batch["noise"].shape == (4, 6) and batch["mix"].shape == (4,)
    finished = dataset.finish(batch)["image"]
    assert finished.min() >= -1 and finished.max() <= 1
    assert torch.equal(levels(finished), batch["image"])


def test_files_that_do_not_fit_in_memory_are_decoded_when_needed(tmp_path, monkeypatch):
    data = Pictures(source="folder", path=str(folder(tmp_path / "own")), side=16, channels=3, noise=6)
    kept = data.open()
    monkeypatch.setattr("etude.data.pictures.KEPT_BYTES", 0)
    read = data.open()
    assert kept.in_memory and not read.in_memory
    for split in kept.sizes:
        assert torch.equal(kept.fetch(split, [0])["image"], read.fetch(split, [0])["image"])


def test_of_files_that_do_not_fit_in_memory_only_the_headers_are_read(tmp_path, monkeypatch):
    """A truncated one is named when its turn comes; one that is no picture, or too small, before."""
    root = folder(tmp_path / "own")
    names = sorted(path.name for path in root.iterdir())
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:-200])
    monkeypatch.setattr("etude.data.pictures.KEPT_BYTES", 0)
    data = Pictures(source="folder", path=str(root), side=16, channels=3, noise=6)
    dataset = data.open()
    with pytest.raises(UsageError, match=rf"{root}/\d\d\.(jpg|png): truncated or damaged picture") as caught:
        dataset.batch(seed=0, step=0, batch_size=1)
    assert "\n" not in str(caught.value) and caught.value.hint == "remove or mend it"
    monkeypatch.setattr("etude.data.pictures.KEPT_BYTES", 1 << 30)
    with pytest.raises(UsageError, match="nor 11 others of the 12"):
        data.open()
    small(root)
    monkeypatch.setattr("etude.data.pictures.KEPT_BYTES", 0)
    with pytest.raises(UsageError, match=r"tiny\.png: 9 x 20 pixels, less than 16 x 16$"):
        data.open()


def test_pictures_are_looked_at_by_several_threads_and_counted(tmp_path, monkeypatch):
    """In order, as one thread would."""
    barrier, shown = threading.Barrier(2, timeout=20), []
    square = pictures.square

    def together(*settings):
        barrier.wait()  # passes where two are looked at at once
        return square(*settings)

    @contextmanager
    def bars(**settings):
        yield lambda what, done, total: shown.append((what, done, total))

    monkeypatch.setattr(pictures, "square", together)
    monkeypatch.setattr(pictures, "bars", bars)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    root = folder(tmp_path / "own")
    dataset = Pictures(source="folder", path=str(root), side=16, channels=3, noise=6).open()
    assert shown == [("looking at pictures", done, 12) for done in range(1, 13)]
    hashes = {str(path): path_hash(str(path), root) for path in sorted(root.iterdir())}
    limit = max(0.1, sorted(hashes.values())[6])
    for split, paths in {
        "train": [path for path, value in hashes.items() if value >= limit],
        "test": [path for path, value in hashes.items() if value < limit],
    }.items():
        found = dataset.fetch(split, range(len(paths)))["image"]
        assert torch.equal(found, torch.stack([square(path, 16, 3) for path in paths]))


def test_two_pictures_that_hash_to_the_test_are_shared_out(tmp_path, monkeypatch):
    root = folder(tmp_path / "own", 2)
    monkeypatch.setattr("etude.data.folder.path_hash", lambda path, root: 0.02 if path.endswith("00.jpg") else 0.05)
    data = Pictures(source="folder", path=str(root), side=16, channels=3, noise=6)
    assert data.open().sizes == {"train": 1, "test": 1}
    with pytest.raises(UsageError, match="is 1, of only 1 training pictures") as caught:
        replace(data, validation=1).open()
    assert caught.value.hint == "--data.validation 0"


def broken(root: Path) -> None:
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (root / "empty.png").write_bytes(b"")


def small(root: Path) -> None:
    Image.new("RGB", (9, 20)).save(root / "tiny.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(broken, r"bad\.jpg.*nor 1 others of the 14"), (small, "tiny.png: 9 x 20 pixels, less than 16 x 16")],
)
def test_pictures_that_cannot_be_used_are_named_before_training(tmp_path, spoil, said):
    root = folder(tmp_path / "own")
    spoil(root)
    with pytest.raises(UsageError, match=said) as caught:
        Pictures(source="folder", path=str(root), side=16, channels=3).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"source": "fashon-mnist"}, UsageError, "there are no pictures 'fashon-mnist'"),
        ({"source": "imagenet"}, UsageError, "there are no pictures 'imagenet'"),
        ({"channels": 2}, UsageError, "data.channels is 2"),
        ({"source": "digits", "side": 32}, UsageError, "have 8 pixels a side; data.side is 32"),
        ({"source": "digits", "side": 4}, UsageError, "have 8 pixels a side; data.side is 4"),
        ({"source": "digits", "side": 8, "channels": 3}, UsageError, "have 1 channels, data.channels is 3"),
        ({"source": "digits", "side": 8, "validation": 5000}, UsageError, "of only 1437 training pictures"),
        ({"source": "folder"}, MissingError, "no such folder"),
        ({"source": "folder", "path": "nowhere"}, MissingError, "nowhere: no such folder"),
        ({"noise": 0}, UsageError, "data.noise 0"),
    ],
)
def test_settings_that_do_not_fit(settings, error, said):
    with pytest.raises(error, match=said):
        Pictures(**settings).open()


def test_validation_that_leaves_nothing_to_train_on():
    with pytest.raises(UsageError) as caught:
        Pictures(source="digits", side=8, validation=1437).open()
    assert caught.value.hint == "--data.validation 143"


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_folder(tmp_path, count):
    with pytest.raises(UsageError, match=f"{count} pictures, where 2 are the least") as caught:
        Pictures(source="folder", path=str(folder(tmp_path / "own", count))).open()
    assert caught.value.hint.startswith("--data.path DIR, with pictures of .jpg, .jpeg, .png")


def test_a_set_with_a_border():
    dataset = Pictures(source="digits", side=12, noise=4).open()
    image = dataset.fetch("train", [3])["image"]
    assert image.shape == (1, 1, 12, 12)
    assert not image[..., :2].any() and not image[..., :2, :].any() and image[..., 2:10, 2:10].any()


def test_a_batch_follows_from_seed_and_step_alone():
    """Two processes draw what one would; another epoch brings other noise, evaluation always the same."""
    dataset = Pictures(source="digits", side=8, noise=4, flip=True).open()
    whole = dataset.batch(seed=5, step=3, batch_size=8)
    halves = [dataset.batch(seed=5, step=3, batch_size=8, rank=rank, world=2) for rank in range(2)]
    for name, value in whole.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), value), name
    again = dataset.fetch("train", whole["index"].numpy(), epochs=1, seed=5)
    assert not torch.equal(again["noise"], whole["noise"]) and not torch.equal(again["mix"], whole["mix"])
    fixed = dataset.fetch("test", [4], seed=9)
    assert torch.equal(fixed["noise"], dataset.fetch("test", [4], seed=1)["noise"])
    assert torch.equal(fixed["noise"], drawn(FIXED, [4], 2))


def test_mirroring():
    dataset = Pictures(source="digits", side=8, noise=2, flip=True).open()
    plain = dataset.fetch("train", range(200))["image"]
    turned = dataset.fetch("train", range(200), epochs=0, seed=0)["image"]
    flipped = (plain.flip(-1) == turned).flatten(1).all(1)
    kept = (plain == turned).flatten(1).all(1)
    assert bool((flipped | kept).all()) and 60 < int(flipped.sum()) < 140


def test_patches_of_photographs(tmp_path, monkeypatch):
    """Of the photographs to learn from, at every scale, cut anew each epoch; those of evaluation stay."""
    rng = np.random.default_rng(0)
    held: dict[str, dict[str, Path]] = {"train": {}, "test": {}, "validation": {}}
    for i, split in enumerate(["train", "train", "test", "validation"]):
        path = tmp_path / f"{i}.png"
        noise = rng.integers(0, 30, (160, 200, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(60 * i)).save(path)
        held[split][str(i)] = path
    monkeypatch.setattr(photos, "files", lambda split, path="": held[split])
    dataset = Pictures(source="photos", side=16, channels=3, noise=2, patches=50, validation=10).open()
    assert dataset.sizes == {"train": 50, "test": 2000, "validation": 10}
    batch = dataset.batch(seed=0, step=0, batch_size=50)["image"].float().mean((1, 2, 3))
    assert set(((batch - 15) / 60).round().int().tolist()) == {0, 1}
    means = dataset.fetch("test", range(50))["image"].float().mean((1, 2, 3))
    assert set(((means - 15) / 60).round().int().tolist()) == {0, 1}
    cut = torch.cat([dataset.pictures(split, range(10)) for split in ("train", "test", "validation")])
    assert len(cut.flatten(1).unique(dim=0)) == 30
    a, b = (dataset.fetch("train", range(9), epochs=epoch, seed=0)["image"] for epoch in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(dataset.pictures("test", range(9)), dataset.pictures("test", range(9)))


def test_ring():
    data = Ring(train=400)
    dataset = data.open()
    points = dataset.fetch("test", range(2000))["image"]
    assert points.shape == (2000, 2)
    assert data.centres[0].tolist() == [2, 0] and torch.allclose(data.centres.norm(dim=1), torch.tensor(2.0))
    away = points - data.centres[torch.arange(2000) % 8]
    assert away.std().item() == pytest.approx(0.1, rel=0.05) and away.mean().abs() < 0.01
    a, b = (dataset.fetch("train", range(5), epochs=epoch, seed=0)["image"] for epoch in (0, 1))
    assert not torch.equal(a, b)
    with pytest.raises(UsageError, match="must be positive"):
        Ring(deviation=0)
    assert Ring(modes=50).centres.shape == (50, 2)
    with pytest.raises(UsageError, match=r"data\.modes is 51; each of more than 50") as caught:
        Ring(modes=51)
    assert caught.value.hint == "--data.modes 50"


def test_latents_to_ask_with(tmp_path):
    data = Ring()
    assert data.prepare(7).tolist() == data.prepare("7").tolist() == [7]
    assert data.prepare(np.zeros(3)).shape == (1, 3)
    np.save(tmp_path / "z.npy", np.ones((4, 5), dtype=np.float32))
    assert data.prepare(tmp_path / "z.npy").shape == (4, 5)
    assert data.collate([torch.ones(1, 2), torch.ones(3, 2)])["noise"].shape == (4, 2)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("seven", "'seven' is neither a latent's number nor a file"),
        (-1, "-1 is neither"),
        (None, "None is neither"),
        (np.zeros((2, 3, 4)), r"not \(2, 3, 4\) float64"),
        (np.array([1, 2]), r"not \(2,\) int64"),
        (np.array([1.0, np.nan]), "finite real numbers"),
        ("missing.npy", "missing.npy: no such file"),
        (np.zeros((0, 8)), r"not \(0, 8\) float64"),
        (np.zeros(0), r"not \(0,\) float64"),
        (np.array(["a", "b"]), r"not \(2,\) str"),
        (np.zeros(2, dtype=[("x", "f4")]), r"not \(2,\) void"),
        (np.array([1e300, 0]), "at most 1000 either way, not 1e\\+300"),
        (np.array([0, -1e38], dtype=np.float32), "at most 1000 either way, not -"),
        (torch.tensor([0, 1e300], dtype=torch.float64), "at most 1000 either way, not inf"),
    ],
)
def test_latents_that_are_none(raw, said, tmp_path):
    """Nor in a file."""
    with pytest.raises(EtudeError, match=said):
        Ring().prepare(raw)
    if isinstance(raw, np.ndarray):
        np.save(tmp_path / "z.npy", raw)
        with pytest.raises(UsageError, match=rf"z\.npy: .*{said}") as caught:
            Ring().prepare(tmp_path / "z.npy")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [">f4", ">f8", "f2", "longdouble"])
def test_latents_of_any_real_type(kind, tmp_path):
    np.save(tmp_path / "z.npy", np.array([[0.5, -2], [1, 3]]).astype(kind))
    prepared = Ring().prepare(tmp_path / "z.npy")
    assert prepared.dtype == torch.float32 and prepared.tolist() == [[0.5, -2], [1, 3]]
    assert Ring().prepare(torch.tensor([0.5, -2], dtype=torch.bfloat16, requires_grad=True)).tolist() == [[0.5, -2]]


def test_a_file_that_is_no_array(tmp_path):
    """Nor one that would run code, which numpy's own words advise to load in another way."""
    for name, content in {"text.npy": b"hello", "empty.npy": b""}.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros(9))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-3])
    np.savez(tmp_path / "many.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    for path in sorted(tmp_path.iterdir()):
        said = "an .npz archive under the name" if path.stem == "many" else "not an array of numbers"
        with pytest.raises(UsageError, match=f"{path.name}: {said}") as caught:
            Ring().prepare(str(path))
        assert "pickle" not in f"{caught.value}{caught.value.hint}" and "\n" not in str(caught.value)


def test_scaling_is_undone():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(levels(scaled(every)), every)
    assert levels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
