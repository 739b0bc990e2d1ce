"""What the players play for, in which order, on which samples; and that neither a kill nor a second process shows."""

import json
import math
import re
from pathlib import Path
from typing import Any

import adversarial_worker
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from games import RECIPES, game, growing
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from etude.cli import main
from etude.data.latents import drawn
from etude.data.ring import Ring
from etude.engine.checkpoint import digest
from etude.engine.fit import train
from etude.engine.health import ALARMED, Alarms
from etude.engine.parallel import World
from etude.engine.recipe import Recipe
from etude.engine.replay import replay
from etude.engine.run import Run, begin
from etude.engine.trainer import Trainer
from etude.errors import NumericError, UsageError
from etude.generative import gan
from etude.report.blocks import sections_of
from etude.tasks.adversarial import GAN, WGAN, WGANGP, gradient_penalty, judged, minibatches
from etude.tasks.base import Update
from etude.tasks.generative import Make, Modes, _smaller
from etude.tasks.made import Made, slerp
from etude.tasks.progressive import Progressive
from etude.weights import load_weights
from processes import launch


class Linear(nn.Module):
    """f(x) = w x, whose slope is w everywhere."""

    def __init__(self, *weights: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))

    def joins(self, count: int) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.to(x.dtype)


def players() -> Any:
    model: Any = nn.Module()
    model.generator, model.critic = nn.Linear(2, 2), Linear(3.0, 4.0)
    model.latent, model.shape = 2, (2,)
    return model


def batch(count: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(1)
    points, noise = torch.randn(count, 2), torch.randn(count, 4)
    return {"image": points, "noise": noise, "mix": torch.rand(count), "index": torch.arange(count)}


def test_penalty_of_a_known_slope():
    """|grad f| = |(3, 4)| = 5 on every line: (5 - 1)^2, and its gradient 2 (|w| - 1) w / |w|."""
    critic = Linear(3.0, 4.0)
    penalty = gradient_penalty(critic, torch.randn(7, 2), torch.randn(7, 2), torch.rand(7))
    penalty.backward()
    assert penalty.item() == pytest.approx(16)
    assert critic.w.grad is not None and critic.w.grad.tolist() == pytest.approx([8 * 0.6, 8 * 0.8])


def test_penalty_lies_between_real_and_made():
    """f = |x|^2 / 2 has the slope x, so the penalty tells where it was taken."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1) / 2

    real, made, mix = torch.full((1, 1), 10.0), torch.full((1, 1), 2.0), torch.tensor([0.25])
    assert gradient_penalty(Square(), real, made, mix).item() == pytest.approx((0.25 * 10 + 0.75 * 2 - 1) ** 2)


def test_penalty_is_computed_in_fp32_under_autocast():
    torch.manual_seed(0)
    critic = gan.Config(channels=1, side=8, width=4, critic_norm="layer").build().critic
    real, made, mix = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.rand(4)
    exact = gradient_penalty(critic, real, made, mix)
    exact.backward()
    grads = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        again = gradient_penalty(critic, real.bfloat16().float(), made.bfloat16(), mix)
        assert again.dtype == torch.float32
        same = gradient_penalty(critic, real, made, mix)
    same.backward()
    assert same.item() == exact.item()
    for p, grad in zip((p for p in critic.parameters() if p.grad is not None), grads):
        assert p.grad is not None and p.grad.dtype == torch.float32
        assert (p.grad - grad).norm() < 0.02 * grad.norm()


def test_losses_by_hand():
    model, samples = players(), batch()
    z, fresh = samples["noise"][:, :2], samples["noise"][:, 2:]
    real = (samples["image"] @ torch.tensor([3.0, 4.0])).tolist()
    made = (model.generator(z) @ torch.tensor([3.0, 4.0])).tolist()
    anew = (model.generator(fresh) @ torch.tensor([3.0, 4.0])).tolist()

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def log_d(s: float) -> float:
        return -math.log(1 + math.exp(-s))

    critic = -mean([log_d(s) for s in real]) - mean([log_d(-s) for s in made])
    assert GAN().critic_loss(model, samples)[0].item() == pytest.approx(critic, rel=1e-5)
    assert GAN().generator_loss(model, samples)[0].item() == pytest.approx(-mean([log_d(s) for s in anew]), rel=1e-5)
    minimax = GAN(objective="minimax").generator_loss(model, samples)[0]
    assert minimax.item() == pytest.approx(mean([log_d(-s) for s in anew]), rel=1e-5)
    gain = mean(real) - mean(made)
    assert WGAN().critic_loss(model, samples)[0].item() == pytest.approx(-gain, rel=1e-5)
    assert WGAN().generator_loss(model, samples)[0].item() == pytest.approx(-mean(anew), rel=1e-5)
    loss, said = WGANGP(penalty=3).critic_loss(model, samples)
    assert loss.item() == pytest.approx(-gain + 3 * 16, rel=1e-5)
    assert set(said) == {"loss", "wasserstein", "penalty"}


def test_drift():
    torch.manual_seed(0)
    model = growing().model.build()
    samples = {"image": torch.randn(8, 1, 8, 8), "noise": torch.randn(8, 8), "mix": torch.rand(8)}
    with_drift, without = (
        Progressive(drift=drift, features="thumbnails").critic_loss(model, samples)[0] for drift in (0.5, 0.0)
    )
    real = model.critic(F.avg_pool2d(samples["image"], 2))
    assert (with_drift - without).item() == pytest.approx(0.5 * real.square().mean().item(), rel=1e-3)


def test_the_critics_turn_costs_the_generator_nothing():
    model, samples = players(), batch()
    for task in (GAN(), WGAN(), WGANGP()):
        task.critic_loss(model, samples)[0].backward()
        assert model.generator.weight.grad is None and model.critic.w.grad is not None


def test_one_pass_for_two_batches_only_where_nothing_mixes():
    calls = []

    class Counting(Linear):
        def __init__(self, joins: bool):
            super().__init__(1.0, 2.0)
            self.may = joins

        def joins(self, count: int) -> bool:
            return self.may

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    x, y = torch.randn(3, 2), torch.randn(3, 2)
    together, apart = judged(Counting(True), x, y), judged(Counting(False), x, y)
    assert calls == [6, 3, 3]
    for a, b in zip(together, apart):
        torch.testing.assert_close(a, b)


def test_minibatches_of_shares_are_shares_of_minibatches():
    samples = {"index": torch.arange(12)}
    whole = [part["index"].tolist() for part in minibatches(samples, 3)]
    assert sorted(number for part in whole for number in part) == list(range(12))
    shares = [{"index": torch.arange(6)}, {"index": torch.arange(6, 12)}]
    halves = [[part["index"].tolist() for part in minibatches(share, 3)] for share in shares]
    assert [a + b for a, b in zip(*halves)] == whole
    with pytest.raises(UsageError, match="12 samples a process do not divide into 5 minibatches"):
        minibatches(samples, 5)


def recorded(task: Any, model: Any, samples: dict[str, Tensor]) -> list[tuple[str, list[int]]]:
    turns = []

    def update(loss_fn: Any, part: dict[str, Tensor], player: str) -> dict[str, Tensor]:
        turns.append((player, part["index"].tolist()))
        if player == "critic" and isinstance(task, WGAN):
            model.critic.w.data.fill_(0.5)
        return {f"{player}/loss": torch.zeros(())}

    logs = task.step(model, samples, Update(update))
    assert set(logs) == {"critic/loss", "generator/loss"}
    return turns


def test_algorithm_1():
    model, samples = players(), batch()
    expected = [("critic", [0, 2, 4]), ("critic", [1, 3, 5]), ("generator", [1, 3, 5])]
    assert recorded(GAN(critic_steps=2), model, samples) == expected
    turns = [("critic", [0, 3]), ("critic", [1, 4]), ("critic", [2, 5]), ("generator", [2, 5])]
    assert recorded(WGANGP(critic_steps=3), model, samples) == turns
    assert recorded(WGAN(critic_steps=3, clip=0.02), model, samples) == turns
    assert model.critic.w.tolist() == pytest.approx([0.02, 0.02])


def test_growing_counts_images_and_begins_anew_at_each_resolution():
    model = growing().model.build()
    events: list[str] = []

    def update(loss_fn: Any, part: dict[str, Tensor], player: str) -> dict[str, Tensor]:
        events.append(f"{player} {len(part['index'])} at {int(model.generator.shown)}")
        return {}

    task = growing().task
    step = Update(update, lambda player: events.append(f"{player} anew"))
    for _ in range(5):
        task.step(model, batch(16), step)
    assert events[:2] == ["critic 16 at 0", "generator 16 at 0"]
    assert events[6:10] == ["critic 16 at 48", "generator 16 at 48", "critic anew", "generator anew"]
    assert events[10:12] == ["critic 8 at 64", "generator 8 at 64"]
    assert events[12:] == ["critic 8 at 72", "generator 8 at 72"] and model.alpha == 16 / 96
    with pytest.raises(UsageError, match="a batch of 24 over 2 processes does not divide into minibatches of 16"):
        task.check_batch(model, batch(12), 2, 1)
    with pytest.raises(UsageError, match=r"a minibatch of 8 \(task.batch_sizes\) in 4 pieces tears apart the groups"):
        task.check_batch(model, batch(8), 2, 2)
    uneven = Progressive(batch_sizes=(6, 4), features="thumbnails")
    with pytest.raises(UsageError, match="does not divide into minibatches of 4") as caught:
        uneven.check_batch(model, batch(6), 1, 1)
    assert caught.value.hint == "--batch-size 12"
    alone = Progressive(batch_sizes=(1,), features="thumbnails")
    with pytest.raises(UsageError, match="a process has 1 samples of a minibatch"):
        alone.check_batch(model, batch(4), 1, 1)
    with pytest.raises(UsageError, match=r"a process has 6 samples of a minibatch, in 4 parts \(accumulate\)"):
        WGANGP(critic_steps=2).check_batch(model, batch(12), 1, 4)


# -------------------------------------------------------------------- through the engine


def trainer(recipe: Recipe, directory: Path) -> Trainer:
    directory.mkdir(exist_ok=True)
    return Trainer(recipe, directory, world=World(torch.device("cpu")), quiet=True)


DEATHS = [("gan", 2), ("wgan", 3), ("wgan_gp", 2), ("ring", 3), *(("progan", step) for step in (3, 4, 7))]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> dict[str, tuple[Trainer, Path]]:
    """Each game, played without a stop."""
    played = {}
    for name, recipe in RECIPES.items():
        folder = tmp_path_factory.mktemp(name) / "run"
        played[name] = trainer(recipe.with_(save_every=1, keep=99), folder), folder
        played[name][0].fit()
    return played


@pytest.mark.parametrize(("name", "died"), DEATHS)
def test_a_death_costs_nothing(name, died, wholes, tmp_path):
    """To the bit; ProGAN before, exactly where and after its optimisers begin anew, and within the fade."""
    recipe = RECIPES[name].with_(save_every=1, keep=99)
    whole, folder = wholes[name]

    class Died(Exception):
        pass

    def die(logs):
        if dying.step == died + 1:
            raise Died
        record(logs)

    dying = trainer(recipe, tmp_path / "stopped")
    record, dying._record = dying._record, die
    with pytest.raises(Died):
        dying.fit()
    resumed = trainer(recipe, tmp_path / "stopped")
    resumed.resume()
    assert resumed.step == died
    if name == "progan" and died == 4:
        assert not resumed.optimizers["critic"].state and resumed.model.level == 1  # pyright: ignore
    if name == "progan" and died == 7:
        assert 0 < resumed.model.alpha < 1  # pyright: ignore
    resumed.fit()
    assert {g: digest(t) for g, t in resumed.tensors().items()} == {g: digest(t) for g, t in whole.tensors().items()}
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_nan_of_a_penalty_is_explained_and_replayed(tmp_path):
    recipe = RECIPES["wgan_gp"]
    run = trainer(recipe, tmp_path / "run")
    begin(run.directory, recipe, device=run.device, precision="fp32", dataset=run.dataset, params=run.params)  # pyright: ignore
    step = run.take_step

    def poisoned(batch):
        if run.step == 2:
            with torch.no_grad():
                run.model.critic[0].weight[0] = float("nan")  # pyright: ignore
        return step(batch)

    run.take_step = poisoned
    with pytest.raises(NumericError, match=r"critic\.0"):
        run.fit()
    at, finding = replay(Run(tmp_path / "run"))
    assert at == 2 and "critic.0" in finding.what


def test_compiling_is_refused():
    critic = Linear(1.0, 2.0)
    critic._compiled_call_impl = critic.forward  # what compile() leaves
    with pytest.raises(UsageError, match="second derivative, which torch cannot compile"):
        gradient_penalty(critic, torch.randn(2, 2), torch.randn(2, 2), torch.rand(2))


def test_the_forgotten_optimiser_is_as_if_just_made(wholes):
    done, _ = wholes["wgan_gp"]
    assert done.optimizers["critic"].state
    kept = dict(done.optimizers["critic"].state)
    done.forget("critic")
    assert not done.optimizers["critic"].state and done.optimizers["generator"].state
    done.optimizers["critic"].state.update(kept)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    adversarial_worker.main(one)
    launch(Path(adversarial_worker.__file__), two)
    return one, two


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_equal_one(both, name):
    """Weights, optimisers, averages and measures: double backward, shared BatchNorm, groups and growth included."""
    one, two = (load_file(directory / f"{name}.safetensors") for directory in both)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")
    one, two = (json.loads((directory / f"{name}.json").read_text())["eval"] for directory in both)
    assert two == pytest.approx(one, rel=2e-2, abs=2e-2)


# -------------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("logs", "kind", "said"),
    [
        ({"generator/spread": 0.001}, "collapse", "vary 0.1% as much as the data"),
        ({"critic/loss": 3e5}, "runaway", r"critic's loss is 3e\+05"),
        ({"critic/grad_norm": 5e4, "generator/grad_norm": 2.0}, "imbalance", "lower --optim.critic.lr"),
        ({"critic/grad_norm": 0.0, "generator/grad_norm": 2.0}, "imbalance", "lower --optim.generator.lr"),
        ({"critic/loss": 1e-5}, "won", "the critic has won: its loss is 1.0e-05"),
    ],
)
def test_alarms(logs, kind, said):
    found = GAN().alarms(logs)
    assert list(found) == [kind]
    assert re.search(said, found[kind]) and "usually helps" in found[kind]


def test_remedies_are_the_tasks_own():
    runaway, unequal = {"critic/loss": 3e5}, {"critic/grad_norm": 5e4, "generator/grad_norm": 2.0}
    said = {task: task.alarms(runaway)["runaway"] for task in (GAN(), WGAN(), WGANGP())}
    assert ["--task.clip" in text for text in said.values()] == [False, True, False]
    assert ["--task.penalty" in text for text in said.values()] == [False, False, True]
    assert "--task.critic-steps" in WGANGP().alarms(unequal)["imbalance"]
    assert "--task.critic-steps" not in Progressive().alarms(unequal)["imbalance"]


def test_nothing_is_amiss():
    logs = {"critic/loss": 0.9, "critic/grad_norm": 3.0, "generator/grad_norm": 0.4, "generator/spread": 0.8}
    assert GAN().alarms(logs) == WGANGP().alarms(logs) == GAN().alarms({}) == {}
    assert WGANGP().alarms({"critic/loss": 1e-9}) == {}


def test_a_critic_that_lags_behind_is_named_after_six_logged_steps():
    behind = {"critic/wasserstein": -0.1, "generator/spread": 1.0}
    task, ahead = Progressive(), {"critic/wasserstein": 0.1}
    alarms = Alarms(task.alarmed_after)
    assert not any(alarms(task.alarms(ahead if i % 6 == 0 else behind)) for i in range(30))
    alarms = Alarms(task.alarmed_after)
    said = [alarms(task.alarms(behind)) for _ in range(12)]
    assert "lags behind" in said[5][0] and sum(map(len, said)) == 1
    assert not GAN().alarms(behind)


def test_an_alarm_is_said_once_and_not_for_one_odd_step():
    alarms = Alarms()
    said = [alarms({"collapse": "words"}) for _ in range(ALARMED + 3)]
    assert said == [[]] * (ALARMED - 1) + [["words"]] + [[]] * 3
    alarms = Alarms()
    assert not any(alarms({} if i % ALARMED == 0 else {"collapse": "words"}) for i in range(20))


def test_a_collapse_is_named_in_the_log(tmp_path):
    """A generator whose last layer is 0 makes one picture only."""
    dead = trainer(RECIPES["wgan_gp"].with_(**{"optim.generator.lr": 1e-12}), tmp_path / "run")
    with torch.no_grad():
        list(dead.model.generator.parameters())[-1].zero_()  # pyright: ignore
    dead.fit()
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.count("collapse: the generator's samples vary 0.0% as much as the data") == 1


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"data.noise": 7}, "a latent takes 4 numbers in each player's turn, and data.noise gives 7", "--data.noise 8"),
        ({"model.side": 16}, "the model makes 1x16x16", "--model.side 8 --model.channels 1"),
        ({"model.channels": 3}, "the model makes 3x8x8", "--model.side 8 --model.channels 1"),
        ({"data.side": 12}, "the data holds 1x12x12", "--data.side 16: a power of two, as models make"),
        ({"task.features": "points"}, "the data are pictures of 1x8x8", "--task.features thumbnails"),
        ({"model.critic_norm": "batch", "model.side": 16}, "normalises over the batch", "--model.critic-norm layer"),
        ({"data.validation": 5}, "the validation split has 5 samples, too few", "--data.validation 0"),
        ({"compile": True}, "second derivative, which torch cannot compile", "--no-compile"),
    ],
)
def test_model_and_data_that_do_not_fit(changes, said, hint):
    with pytest.raises(UsageError, match=said) as caught:
        Trainer(game(WGANGP(features="thumbnails"), **changes), None, quiet=True)
    assert caught.value.hint == hint


@pytest.mark.parametrize("task", [WGAN(features="thumbnails"), Progressive(features="thumbnails")])
def test_batches_that_do_not_divide_are_told_before_a_run_exists(task, tmp_path):
    recipe = growing(task=task, batch_size=24) if isinstance(task, Progressive) else game(task, batch_size=24)
    with pytest.raises(UsageError, match=r"24 (samples a process do|does) not divide into"):
        train(recipe, run=tmp_path / "run", quiet=True, device="cpu")
    assert not (tmp_path / "run").exists()


def test_more_stages_than_data():
    with pytest.raises(UsageError, match="grows to 16 x 16 pixels, and the data's pictures have 8 x 8") as caught:
        Trainer(growing(**{"model.side": 16}), None, quiet=True)
    assert caught.value.hint == "--model.side 8, or --data.side 16"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WGAN(clip=0), "task.clip is 0"),
        (lambda: WGANGP(penalty=0), "task.penalty is 0"),
        (lambda: WGANGP(penalty=math.inf), "task.penalty is inf"),
        (lambda: WGAN(clip=math.nan), "task.clip is nan"),
        (lambda: Progressive(drift=math.nan), "task.drift nan"),
        (lambda: WGANGP(critic_steps=0), "task.critic_steps is 0"),
        (lambda: Progressive(batch_sizes=()), "must be positive"),
        (lambda: Progressive(critic_steps=2), "task.critic_steps 2"),
        (lambda: GAN(features="inception"), "must be one of fashion"),  # pyright: ignore
        (lambda: GAN(objective="hinge"), "must be non-saturating or minimax"),  # pyright: ignore
        (lambda: Make(n=0), "n is 0"),
        (lambda: Make(n=1, interpolate=(1, 2)), "takes two latents' numbers"),
    ],
)
def test_tasks_that_do_not_exist(make, said):
    with pytest.raises(UsageError, match=said):
        make()


# -------------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = game(WGANGP(critic_steps=3, features="thumbnails"), steps=2, eval_every=1)
    return train(recipe, run=tmp_path_factory.mktemp("runs") / "run", quiet=True, device="cpu")


def test_the_report_shows_samples_over_time(run):
    blocks = json.loads((run.path / "figures.json").read_text())
    titles = [block["title"] for block in blocks]
    assert titles[:2] == ["Made pictures", "From one latent to another"]
    assert titles[2] == "Nearest training pictures"
    assert [one["step"] for one in blocks[0]["earlier"]] == [1] and blocks[0]["step"] == 2
    notes: list[str] = []
    sections = sections_of(blocks, notes)
    assert len(sections) == 3 and not notes
    assert "test, after 1 steps" in sections[0][2] and sections[0][2].count("<img") == 2
    assert "a generator that learned by heart" in sections[2][2]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_samples_by_number_and_seed(run, tmp_path):
    many = run.predict(n=9, seed=1)
    assert many.samples.shape == (9, 1, 8, 8) and many.samples.dtype == torch.uint8
    torch.testing.assert_close(many.latents, drawn(1, range(9), 4))
    seventh = run.predict(7, seed=1)
    assert torch.equal(seventh.samples[0], many.samples[7])
    given = run.predict(many.latents.numpy()[2:4])
    assert torch.equal(given.samples, many.samples[2:4])
    assert run.predict(n=9, seed=2).samples.ne(many.samples).any()
    many.save(tmp_path / "sheet.png")
    assert size_of(tmp_path / "sheet.png") == (3 * 8 + 2 * 2, 3 * 8 + 2 * 2)
    assert len(list(tmp_path.glob("sheet-00*.png"))) == 9
    again = run.predict(str(tmp_path / "sheet-latents.npy"))
    assert torch.equal(again.samples, many.samples)
    assert json.dumps(many.json()) and len(many.row()) == 3


def test_a_film_between_two(run, tmp_path):
    film = run.predict(n=6, interpolate=(2, 5), seed=1)
    ends = run.predict(n=6, seed=1)
    assert torch.equal(film.samples[0], ends.samples[2]) and torch.equal(film.samples[-1], ends.samples[5])
    film.save(tmp_path / "film.png")
    assert size_of(tmp_path / "film.png") == (6 * 8 + 5 * 2, 8)
    with Image.open(tmp_path / "film.gif") as gif:
        assert 2 <= getattr(gif, "n_frames", 1) <= 10


def test_latents_of_the_wrong_size(run):
    with pytest.raises(UsageError, match="a latent of 5 numbers was given; the generator takes 4"):
        run.predict(np.zeros((2, 5)))


def test_more_than_memory_holds_is_refused(run, monkeypatch):
    monkeypatch.setattr("etude.tasks.generative.MOST_BYTES", 8 * 8 * 10)
    assert len(run.predict(n=10).samples) == 10
    with pytest.raises(UsageError, match=r"11 samples of 1x8x8 are more than") as caught:
        run.predict(n=11)
    assert caught.value.hint.startswith("--n 10 at most")


def test_large_pictures_are_made_few_at_once_and_shown_small():
    seen: list[int] = []

    def generator(z: Tensor) -> Tensor:
        seen.append(len(z))
        return torch.zeros(len(z), 1, 4, 4)

    model: Any = nn.Module()
    model.generator, model.shape, model.latent = generator, (1, 256, 256), 2
    model.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    GAN()._make(model, torch.zeros(10, 2))
    assert seen == [4, 4, 2]
    shown = _smaller(torch.full((2, 3, 512, 512), 7, dtype=torch.uint8), 128)
    assert shown.shape == (2, 3, 128, 128) and shown.unique().tolist() == [7]


def test_great_circle():
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    way = slerp(a, b, 3)
    torch.testing.assert_close(way[1], torch.tensor([math.sqrt(2), math.sqrt(2), 0.0]))
    torch.testing.assert_close(way.norm(dim=1), torch.full((3,), 2.0))
    torch.testing.assert_close(slerp(a, 3 * a, 3)[1], 2 * a)


def test_the_command_line_makes_a_sheet_single_files_and_a_film(run, capsys, tmp_path):
    assert main(["predict", str(run.path), "--n", "9", "--seed", "1", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["results"]
    assert said["saved"] == str(run.path / "made" / "seed-1.png") and said["made"] == 9
    assert size_of(run.path / "made" / "seed-1.png") == (3 * 8 + 2 * 2, 3 * 8 + 2 * 2)
    samples = run.predict(n=9, seed=1).samples
    for i in range(9):
        with Image.open(run.path / "made" / f"seed-1-{i:04d}.png") as image:
            assert np.array_equal(np.asarray(image), samples[i, 0].numpy())
    assert main(["predict", str(run.path), "--interpolate", "2", "5", "--n", "6", "--save", str(tmp_path)]) == 0
    assert size_of(tmp_path / "seed-0-from-2-to-5.png") == (6 * 8 + 5 * 2, 8)
    assert (tmp_path / "seed-0-from-2-to-5.gif").is_file()
    assert main(["predict", str(run.path), "7", "--seed", "1", "--save", str(tmp_path)]) == 0
    assert [path.name for path in sorted(tmp_path.glob("7*.png"))] == ["7.png"]
    assert "7 of seed 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--interpolate", "3"], "argument --interpolate: expected 2 arguments"),
        (["--interpolate", "3", "x"], "argument --interpolate: invalid int value: 'x'"),
        (["--interpolate", "3", "-8"], "interpolate (3, -8) takes two latents' numbers"),
        (["--interpolate", "3", "9" * 20], f"interpolate (3, {'9' * 20}) takes two latents' numbers"),
        (["7", "--interpolate", "3", "8"], "interpolate says what is made; it takes no inputs beside it"),
        (["--n", "0"], "n is 0 and seed 0; they must be 1 to 100,000"),
        (["--interpolat", "3", "8"], "did you mean --interpolate?"),
        (["seven"], "'seven' is neither a latent's number nor a file of latents"),
    ],
)
def test_what_cannot_be_made(run, capsys, words, said):
    assert main(["predict", str(run.path), *words]) == 2
    assert said in capsys.readouterr().err


def test_the_generator_is_exported_as_plain_weights(run, tmp_path, capsys):
    assert main(["export", str(run.path), "--out", str(tmp_path / "generator.safetensors")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "generator.safetensors")
    generator = run.recipe.model.build().generator
    load_weights(generator, tmp_path / "generator.safetensors")
    made = generator.eval()(drawn(1, range(9), 4))
    shown = run.predict(n=9, seed=1).samples
    assert ((made + 1) * 127.5).round().sub(shown).abs().max() <= 1
    assert load_file(run.export(tmp_path / "all.safetensors", part="")).keys() == run.model("cpu").state_dict().keys()
    for words, said in (
        (["--part", "crtic"], "did you mean critic?"),
        (["--out", "x.pt"], "does not end in .safetens"),
    ):
        assert main(["export", str(run.path), *words]) == 2
        assert said in capsys.readouterr().err
    before = (run.path / "weights.safetensors").read_bytes()
    for taken in (run.path / "weights.safetensors", tmp_path / "generator.safetensors"):
        with pytest.raises(UsageError, match="is there already or a run's own; nothing is overwritten"):
            run.export(taken)
    assert (run.path / "weights.safetensors").read_bytes() == before


def test_weights_of_a_later_stage_are_kept_whatever_those_before_measured(tmp_path, monkeypatch):
    """A picture of 4x4 pixels may be measured as nearer to the data than one of 8x8, which is what is wanted."""
    distances = iter([1.0, 5.0, 4.0, 6.0, 9.0])
    monkeypatch.setattr("etude.tasks.clouds.frechet", lambda real, made: next(distances))
    recipe = growing(**{"data.validation": 60, "steps": 8, "eval_every": 2})
    done = train(recipe, run=tmp_path / "run", quiet=True, device="cpu")
    measured = [line["eval"] for line in done.metrics if line.get("split") == "validation"]
    assert [(one["side"], one["frechet"]) for one in measured] == [(4, 1.0), (8, 5.0), (8, 4.0), (8, 6.0)]
    assert done.result["best"] == {"step": 6, "frechet": 4.0, "split": "validation", "side": 8}


def test_points_are_drawn_and_modes_counted(tmp_path):
    done = train(RECIPES["ring"], run=tmp_path / "run", quiet=True, device="cpu")
    assert {"modes", "near", "frechet", "wasserstein"} <= set(done.result["eval"])
    made = done.predict(n=20)
    assert made.samples.shape == (20, 2) and len(made.json()["points"]) == 20
    made.save(tmp_path / "points.png")
    assert np.load(tmp_path / "points.npy").shape == (20, 2)


def test_modes_by_hand():
    from etude.tasks.clouds import Clouds

    centres, clouds = Ring().centres, Clouds()
    made = torch.cat([centres[:3].repeat(32, 1), torch.zeros(4, 2)])  # three modes, four points far from any
    clouds.add(torch.arange(100), made, made)
    assert Modes(clouds, "modes", centres, 0.3).value() == 3
    assert Modes(clouds, "near", centres, 0.3).value() == pytest.approx(0.96)


def test_spread_of_what_was_made():
    alike = Made(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4, 2), "x")
    assert alike.spread == 0


@pytest.mark.slow
def test_the_ring_is_found_whole(tmp_path):
    """The recipe as users train it, all 1500 steps: 18 s on an idle core."""
    import etude

    result = train(etude.recipe("wgan_gp.ring"), run=tmp_path / "run", quiet=True, device="cpu").result["eval"]
    assert result["modes"] == 8 and result["frechet"] < 0.05
