"""What is told without torch is what is told with it, for every recipe and study; and what needs it gets it."""

import contextlib
import functools
import importlib
import inspect
import io
import json
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from etude import catalog
from etude.cli import main
from etude.cli.light import LIBRARIES, OURS, NoValue, StandIns, light
from etude.errors import MissingError, UsageError


def asked(arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return code, out.getvalue()


def told(answers: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], list[str]]:
    """Each answer, and the names of those that asked for a value that is not there."""
    found, failed = {}, []
    with mock.patch.object(inspect, "getsource", functools.cache(inspect.getsource)):  # tyro asks for each again
        for name, answer in answers.items():
            try:
                found[name] = answer()
            except NoValue:
                failed.append(name)
    return found, failed


def all_answers(runs: Path) -> dict[str, Callable[[], Any]]:
    """What configurations say of each recipe and study, and of runs of them."""
    from etude.cli import flags, looking, parts, training

    def of(name: str) -> list[Any]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            training._chosen(name, ["--help"])
        if name in catalog.studies():
            return [out.getvalue(), looking._of_study(name), looking._of_study_run(str(runs / name))]
        parser = parts.parser_of(looking.info)
        flags.ask_flags(parser, [str(runs / name)])
        document = looking._of_run(str(runs / name))
        return [out.getvalue(), looking._of_recipe(name), document, parser.format_help()]

    names = [*catalog.recipes(), *catalog.studies()]
    return {name: (lambda name=name: of(name)) for name in names}


def light_answers(runs: str) -> dict[str, Any]:
    """`all_answers` with stand-ins, in one go: `light` would import the stand-ins' modules anew for each."""
    with StandIns((*LIBRARIES, *OURS, "numpy")):
        found, failed = told(all_answers(Path(runs)))
    with StandIns((*LIBRARIES, *OURS)):
        answers = all_answers(Path(runs))
        more = {name: answers[name]() for name in failed}
    return {"answers": found | more, "with numpy": failed, "torch": "torch" in sys.modules}


def commands(runs: str) -> list[list[str]]:
    """One command of each kind that is answered without torch."""
    run, study = f"{runs}/mlp.digits", f"{runs}/mlp.activations"
    return [
        ["train", "esrgan.photos_gan", "--help"],
        ["train", "mlp.function", "--optim.lr", "0.5", "-h"],
        ["info", "resnet"],
        ["info", "gpt3-175b", "--json"],
        ["info", "resnet.digits"],
        ["info", "mlp.activations", "--json"],
        ["info", run],
        ["info", study],
        ["info", "nothing"],
        ["report", run],
        ["report", study, "--json"],
        ["report", f"{runs}/nothing"],
        ["predict", f"{runs}/gpt.bible", "--help"],
        ["predict", "esrgan.realesrgan", "--start.weights", "some.pth", "--help"],
        ["predict", f"{runs}/nothing", "--help"],
    ]


def light_commands(runs: str) -> list[Any]:
    """Each command's exit code and words, and whether torch was imported by then."""
    return [[*asked(command), "torch" in sys.modules] for command in commands(runs)]


def heavy_commands(runs: str) -> list[Any]:
    """What needs torch after all, and what a program may do afterwards."""
    Path(runs, "damaged").mkdir()
    Path(runs, "damaged", "recipe.json").write_text('{"config": {"type": "os.system"}}')
    code, words = asked(["info", f"{runs}/mlp.digits"])
    before = "torch" in sys.modules or any(name.startswith("etude.engine") for name in sys.modules)
    refused = asked(["info", f"{runs}/damaged"])
    after = "torch" in sys.modules
    import etude

    built = sum(p.numel() for p in etude.recipe("mlp.digits").model.build().parameters())
    return [code, before, refused, after, built, asked(["info", f"{runs}/mlp.digits"]) == (code, words)]


def elsewhere(function: Callable[[str], Any], runs: Path) -> subprocess.Popen[str]:
    """A function of this file in a process that has not imported torch; it prints what it returns."""
    script = f"import json, test_light as t; print(json.dumps(t.{function.__name__}({str(runs)!r})))"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )


def said_by(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A directory for each recipe and study, as they lie before the first step."""
    from etude.recipes import find_recipe, find_study

    monkeypatch.setenv("COLUMNS", "100")
    for name in catalog.recipes():
        (tmp_path / name).mkdir()
        (tmp_path / name / "env.json").write_text('{"python": "3"}')
        (tmp_path / name / "recipe.json").write_text(json.dumps({"config": find_recipe(name).to_json()}))
    for name in catalog.studies():
        (tmp_path / name).mkdir()
        recipes = {label: recipe.to_json() for label, recipe in find_study(name).recipes().items()}
        (tmp_path / name / "study.json").write_text(json.dumps({"study": name, "recipes": recipes, "outcomes": {}}))
    return tmp_path


def test_every_recipe_says_the_same_with_and_without_torch(runs):
    process = elsewhere(light_answers, runs)
    expected, _ = told(all_answers(runs))  # at the same time
    found = said_by(process)
    assert not found["torch"] and set(found["with numpy"]) == {"mlp.function"}
    assert found["answers"].keys() == expected.keys() == {*catalog.recipes(), *catalog.studies()}
    for name, answer in json.loads(json.dumps(expected)).items():
        assert found["answers"][name] == answer, name


def test_commands_that_import_no_torch(runs):
    process = elsewhere(light_commands, runs)
    expected = [list(asked(command)) for command in commands(str(runs))]
    assert [code for code, _ in expected] == [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0, 3]
    for command, answer, (*found, torch) in zip(commands(str(runs)), expected, said_by(process)):
        assert found == answer and not torch, command


def test_what_needs_torch_gets_it(runs):
    code, before, refused, after, parameters, same = said_by(elsewhere(heavy_commands, runs))
    assert code == 0 and not before and same
    assert refused[0] == 4 and "os.system" in refused[1] and after
    assert parameters == (64 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 10


def test_torch_is_used_where_it_is_imported_already():
    import torch

    assert "torch" in sys.modules and light(lambda: float(torch.ones(2).sum())) == 2.0


@dataclass
class Attempts:
    """An answer that a module slow to import takes part in."""

    asks: bool = False
    error: BaseException | None = None
    count: int = 0

    def __call__(self) -> int:
        self.count += 1
        slow = importlib.import_module("slow")
        if self.asks and not slow.true:
            return 0
        if self.error:
            raise self.error
        return 7


@pytest.fixture
def slow(monkeypatch, tmp_path) -> Iterator[None]:
    """A module of this name, which `light` stands in for as for torch, as if that had not been imported."""
    (tmp_path / "slow.py").write_text("true = True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("etude.cli.light.LIBRARIES", ("slow",))
    monkeypatch.delitem(sys.modules, "torch")
    yield
    sys.modules.pop("slow", None)


@pytest.mark.parametrize(
    ("attempts", "count"),
    [
        (Attempts(), 1),
        (Attempts(asks=True), 3),
        (Attempts(error=MissingError("no such file")), 1),
        (Attempts(error=UsageError("not a name")), 3),  # said by a stand-in, for all that is known
        (Attempts(error=SystemExit(0)), 1),
    ],
)
def test_attempts(slow, attempts, count):
    with pytest.raises(type(attempts.error)) if attempts.error else contextlib.nullcontext():
        assert light(attempts) == 7
    assert attempts.count == count and ("slow" in sys.modules) == (count == 3)


@pytest.fixture
def absent() -> Iterator[Any]:
    """A package that is not here."""
    with StandIns(["absent"]):
        yield importlib.import_module("absent")
    assert "absent" not in sys.modules
    with pytest.raises(ImportError):
        importlib.import_module("absent")


MODEL = """
from collections.abc import Callable
from dataclasses import dataclass
import absent.layers as layers
from absent import Float, Tensor, no_grad

KNOWN = {absent_type: name for name, absent_type in {"linear": layers.Linear, "float": layers.Linear.dtype}.items()}
Maybe = Tensor | int | None

@dataclass(frozen=True)
class Config:
    "What a model is built of."
    width: int = 3
    kind: type[layers.Linear] | None = None
    def build(self):
        return Model(self)

class Model(layers.Module):
    inner: dict[layers.Linear, Callable[[Tensor], Tensor]]
    ratio = layers.ratio(3)
    def __init__(self, config):
        self.width = config.width
    @no_grad()
    def forward(self, x: Float[Tensor, "B C"], y: Maybe = None) -> Float[Tensor, "B C"]:
        return x + y
"""


def test_what_a_stand_in_is_good_for(absent, monkeypatch, tmp_path):
    (tmp_path / "written.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    written = importlib.import_module("written")
    del sys.modules["written"]
    assert written.Config().width == 3 and written.layers is absent.layers
    assert [written.KNOWN[key] for key in (absent.layers.Linear, absent.layers.Linear.dtype)] == ["linear", "float"]
    assert typing.get_type_hints(written.Config)["width"] is int and "inner" in typing.get_type_hints(written.Model)
    for kind in (written.Maybe, int | absent.Tensor | None, None | (absent.Tensor | int)):
        assert isinstance(3, kind) and isinstance(None, kind) and not isinstance("3", kind) and issubclass(bool, kind)
    assert not isinstance(3, absent.Tensor) and not issubclass(int, absent.Tensor)
    with pytest.raises(NoValue):
        written.Config().build()
    with pytest.raises(NoValue):
        issubclass(written.Model, absent.layers.Module)


@pytest.mark.parametrize(
    "ask",
    [
        lambda absent: bool(absent.cuda),
        lambda absent: absent.version == "2",
        lambda absent: absent.float32 in (absent.float, absent.double),
        lambda absent: f"{absent.pi}",
        lambda absent: str(absent.pi),
        lambda absent: len(absent.names),
        lambda absent: list(absent.names),
        lambda absent: "a" in absent.names,
        lambda absent: absent.device("cpu"),
        lambda absent: absent.no_grad.__enter__(),
        lambda absent: isinstance(absent.one, absent.Tensor),
        lambda absent: isinstance(absent.one, int | absent.Tensor),
    ],
)
def test_what_asks_a_stand_in_for_a_value(absent, ask):
    with pytest.raises(NoValue):
        ask(absent)
