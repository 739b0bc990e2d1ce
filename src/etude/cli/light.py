"""What configurations alone say, without the seconds that importing torch takes.

A recipe's flags and JSON, and whether a run's recipe.json holds a recipe, follow from frozen dataclasses; but these
stand in the modules of models, data and tasks, which import torch at their top. While `light` computes such an answer,
stand-ins take the place of torch and of other modules that are slow to import. A stand-in can be named, subclassed,
called as a decorator and written in an annotation, and has no value: what asks it for its truth, its text or its
elements, what calls it to compute, and what builds a model, ends the attempt. The answer is then computed again with
the real modules; so it is the same either way. Nothing that was imported meanwhile stays.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn, ParamSpec, TypeVar

from etude.errors import MissingError

P = ParamSpec("P")
T = TypeVar("T")
LIBRARIES = ("torch", "jaxtyping", "safetensors", "tokenizers", "PIL", "rich")
OURS = ("etude.engine.fit", "etude.engine.trainer", "etude.report", "etude.data.fetch")
"""What trains, draws and downloads, which no configuration does."""


def wants_help(arguments: list[str]) -> bool:
    """Whether flags will be told rather than used."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def light(answer: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T:
    """`answer(...)`, which must be made of Python's own types, without importing torch where that can be."""
    for packages in () if "torch" in sys.modules else ((*LIBRARIES, *OURS, "numpy"), (*LIBRARIES, *OURS)):
        try:  # numpy is real the second time: a function's data computes with it to check itself
            with StandIns(packages):
                return answer(*arguments, **more)
        except MissingError:  # files are what they are
            raise
        except (Exception, NoValue):  # if it is an error, the real modules will say it
            continue
    return answer(*arguments, **more)


class StandIns(MetaPathFinder, Loader):
    """Context manager: imports of these packages give stand-ins. At exit these are removed from sys.modules, with the
    modules of etude that were imported meanwhile and refer to them."""

    def __init__(self, packages: Iterable[str]):
        self._packages = set(packages) - sys.modules.keys()
        self._before = set(sys.modules)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        for name in sys.modules.keys() - self._before:
            if name.startswith("etude.") or self._stands_in(name):
                del sys.modules[name]
                parent, child = name.rpartition(".")[::2]
                if parent in self._before:
                    vars(sys.modules[parent]).pop(child, None)

    def _stands_in(self, module: str) -> bool:
        return any(module == package or module.startswith(f"{package}.") for package in self._packages)

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if self._stands_in(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


class NoValue(BaseException):
    """Code needs the value of a stand-in. A BaseException, so that no `except Exception` of that code catches it."""


class Module(ModuleType):
    """A module in which every name is a stand-in."""

    def __getattr__(self, name: str) -> StandIn:
        return _attribute(self, name)


class StandIn:
    """What was not imported."""

    def __getattr__(self, name: str) -> StandIn:
        return _attribute(self, name)

    def __call__(self, *_: object, **__: object) -> StandIn:
        if sys._getframe(1).f_code.co_flags & inspect.CO_OPTIMIZED:  # by a function; not by a module's or class's body
            raise NoValue
        return StandIn()

    def __getitem__(self, _: object) -> StandIn:
        return StandIn()

    def __or__(self, other: Any) -> StandIn:
        return Either(self, type(None) if other is None else other)

    __ror__ = __or__

    def __mro_entries__(self, _: object) -> tuple[type]:
        return (Unbuilt,)

    def __instancecheck__(self, value: object) -> bool:
        return self.__subclasscheck__(type(value))

    def __subclasscheck__(self, kind: type) -> bool:
        return self._no_value() if StandIn in kind.__mro__ or Unbuilt in kind.__mro__ else False

    def _no_value(self, *_: object) -> NoReturn:
        raise NoValue

    __hash__ = object.__hash__
    __bool__ = __eq__ = __repr__ = __iter__ = __len__ = __enter__ = __exit__ = _no_value


class Either(StandIn):
    """`Tensor | int`: some of what it may be is known."""

    def __init__(self, *kinds: Any):
        self._kinds = kinds

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, self._kinds)

    def __subclasscheck__(self, kind: type) -> bool:
        return issubclass(kind, self._kinds)


class Unbuilt:
    """The base of a class whose real base was not imported, such as a model's."""

    def __new__(cls, *_: object, **__: object) -> NoReturn:
        raise NoValue


def _attribute(owner: Module | StandIn, name: str) -> StandIn:
    """Always the same one. Python's own names are not made up: they say what an object is."""
    if name.startswith("__"):
        raise AttributeError(name)
    return vars(owner).setdefault(name, StandIn())
