"""The import law of ARCHITECTURE.md, and what no file of the package does, read from the syntax trees."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import etude

ROOT = Path(etude.__file__).parent
DOMAINS = {"basics", "vision", "language", "speech", "protein", "generative", "frontier"}
LIGHT = {"torch", "numpy", "jaxtyping"}
"""Libraries that domains may use besides Python's own; a light library of a field is added here."""

MAY_IMPORT = {
    "errors": set(),
    "home": set(),
    "cpu": {"home"},
    "weights": {"errors"},
    "report": {"errors"},
    "catalog": {"errors"},
    "nn": {"errors", "cpu"},
    **{domain: {"errors", "nn"} for domain in DOMAINS},
    "progress": set(),
    "data": {"errors", "home", "progress", "weights"},
    "tasks": {"errors", "progress", "nn", "data", "weights"},
    "engine": {"errors", "cpu", "nn", "data", "tasks", "report", "weights"},
    "compress": {"errors", "nn", "data", "tasks", "engine"},
    "recipes": {"errors", "nn", "data", "tasks", "engine", "catalog", *DOMAINS},
    "verify": {"errors", "nn", "catalog", "data", "weights", *DOMAINS},
    "graph": {"errors", "catalog", "data", "tasks", "engine"},
}
"""Packages and modules of etude, and which others each may import. What is not listed, such as cli, serve and web, sits
on top: it may import all, and nothing that is listed may import it."""

UNSAFE_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
UNSAFE_KEYWORDS = {"shell", "allow_pickle"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Each file's path within the package, and its syntax tree."""
    for path in sorted(ROOT.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names, wherever in the file the import stands: `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module}.{alias.name}" for alias in node.names)


def unlawful(path: str, tree: ast.Module) -> list[str]:
    """The imports of this file that break the law; relative ones always do, as they hide where they lead."""
    package = path.split("/")[0].removesuffix(".py")
    allowed = MAY_IMPORT.get(package)
    found = [name for name in imports(tree) if name.startswith(".")]
    if allowed is None:
        return found
    for name in imports(tree):
        top, _, rest = name.partition(".")
        if top == "etude":
            if rest.split(".")[0] not in {package, *allowed}:
                found.append(name)
        elif package in {"nn", *DOMAINS} and top not in {"", *LIGHT, *sys.stdlib_module_names}:
            found.append(name)
    return found


def unsafe(tree: ast.Module) -> list[str]:
    """Ways for a file or an argument to run code, that this file uses."""
    found = [name for name in imports(tree) if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in UNSAFE_CALLS:
                found.append(ast.unparse(node.func))
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in UNSAFE_KEYWORDS and not off:
                    found.append(f"{keyword.arg}=")
    return found


def test_import_law():
    broken = {path: found for path, tree in sources() if (found := unlawful(path, tree))}
    assert not broken, f"imports against the law: {broken}"


def test_no_file_can_run_code_from_outside():
    broken = {path: found for path, tree in sources() if (found := unsafe(tree))}
    assert not broken, f"unsafe: {broken}"


def test_every_file_is_seen():
    paths = [path for path, _ in sources()]
    assert {"weights/__init__.py", "vision/resnet.py", "engine/trainer.py", "cli/__init__.py"} <= set(paths)
    listed = {path.split("/")[0].removesuffix(".py") for path in paths} & MAY_IMPORT.keys()
    assert listed >= {"errors", "nn", "basics", "vision", "data", "tasks", "engine", "recipes", "catalog", "weights"}


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("vision/resnet.py", "from etude.engine import trainer", ["etude.engine.trainer"]),
        ("vision/resnet.py", "import torchvision", ["torchvision"]),
        ("vision/clip.py", "def f():\n    from etude.language.gpt import GPT", ["etude.language.gpt.GPT"]),
        ("vision/resnet.py", "from etude.nn import inference\nimport math, torch", []),
        ("vision/resnet.py", "from ..engine import trainer", ["..engine.trainer"]),
        ("cli.py", "from . import engine", [".None.engine"]),
        ("data/digits.py", "import etude.engine.trainer", ["etude.engine.trainer"]),
        ("engine/run.py", "from etude.vision.resnet import ResNet", ["etude.vision.resnet.ResNet"]),
        ("engine/run.py", "from etude.cli import main", ["etude.cli.main"]),
        ("engine/run.py", "import etude", ["etude"]),
        ("errors.py", "from etude import catalog", ["etude.catalog"]),
        ("cli.py", "from etude.engine import trainer", []),
    ],
)
def test_the_law_can_be_broken(path, source, broken):
    assert unlawful(path, ast.parse(source)) == broken


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_unsafe_code_is_seen(source):
    assert unsafe(ast.parse(source))


def test_safe_code_is_not():
    assert not unsafe(ast.parse("model.eval()\nimport pickletools\nnp.load(p, allow_pickle=False)\nf(shell=False)"))
