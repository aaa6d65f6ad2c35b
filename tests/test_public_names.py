"""A name is public when it stands in `__all__`, and then it exists and is documented."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import otel_audit

MODULES = sorted(
    {"otel_audit"} | {info.name for info in pkgutil.walk_packages(otel_audit.__path__, prefix="otel_audit.")}
)
# Run as programs, or read by the build: nothing is imported from them.
WITHOUT_NAMES = {"otel_audit._version", "otel_audit.__main__"}


@pytest.fixture(scope="module")
def modules() -> list[ModuleType]:
    return [importlib.import_module(name) for name in MODULES]


def is_empty(module: ModuleType) -> bool:
    """Whether there is nothing in the source of a module, but for a docstring."""
    return not [node for node in tree_of(module.__name__).body if not isinstance(node, ast.Expr)]


def defined_in(module: ModuleType) -> set[str]:
    """The public functions, classes and constants that the source of a module defines at its top level."""
    found: set[str] = set()
    for node in tree_of(module.__name__).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
    return {name for name in found if not name.startswith("_")}


def test_every_module_says_its_public_names(modules: list[ModuleType]) -> None:
    silent = [module.__name__ for module in modules if not is_empty(module) and not hasattr(module, "__all__")]

    assert set(silent) - WITHOUT_NAMES == set()


def test_every_public_name_of_a_module_resolves(modules: list[ModuleType]) -> None:
    assert [(module.__name__, name) for module, name in names_in(modules) if not hasattr(module, name)] == []


def test_public_names_are_sorted_and_stand_there_once(modules: list[ModuleType]) -> None:
    lists = {module.__name__: list(getattr(module, "__all__", [])) for module in modules}

    assert lists == {name: sorted(set(names), key=ruff_order) for name, names in lists.items()}


def test_no_private_name_is_made_public(modules: list[ModuleType]) -> None:
    private = [(module.__name__, name) for module, name in names_in(modules) if name.startswith("_")]

    assert [found for found in private if found[1] != "__version__"] == []


def test_every_public_class_and_function_has_a_docstring(modules: list[ModuleType]) -> None:
    own = [(module.__name__, getattr(module, name)) for module, name in names_in(modules)]
    documented = [(home, one) for home, one in own if inspect.isclass(one) or inspect.isfunction(one)]

    assert [
        f"{home}.{one.__qualname__}" for home, one in documented if one.__module__ == home and not own_doc(one)
    ] == []


def test_every_public_method_of_a_public_class_has_a_docstring() -> None:
    undocumented = [
        f"{name}:{method.lineno} {cls.name}.{method.name}"
        for name in MODULES
        for cls in ast.walk(tree_of(name))
        if isinstance(cls, ast.ClassDef) and not cls.name.startswith("_")
        for method in cls.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
        and not method.name.startswith("_")
        and not ast.get_docstring(method)
    ]

    assert undocumented == []


def test_a_class_or_function_that_others_import_is_a_public_name(modules: list[ModuleType]) -> None:
    sources = {module.__name__: defined_in(module) - set(getattr(module, "__all__", [])) for module in modules}

    assert [
        f"{importer} imports {name} of {source}"
        for importer, source, name in imports_between_modules()
        if name in sources.get(source, set())
    ] == []


def test_the_package_offers_nothing_that_is_not_in_its_list() -> None:
    submodules = {name.split(".")[1] for name in MODULES if "." in name}

    assert public_attributes(otel_audit) - submodules - set(otel_audit.__all__) == set()


def test_each_public_name_of_the_package_is_public_where_it_is_defined() -> None:
    for name in otel_audit.__all__:
        home = sys.modules.get(getattr(getattr(otel_audit, name), "__module__", ""))
        if home is not None and home.__name__.startswith("otel_audit."):
            assert name in home.__all__, home.__name__


def test_a_type_checker_sees_the_names_that_are_loaded_when_they_are_used() -> None:
    homes = {
        alias.name: node.module.removeprefix("otel_audit.")
        for block in tree_of("otel_audit").body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }

    assert homes == otel_audit._HOME
    assert sorted(homes) == sorted(otel_audit.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'otel_audit' has no attribute 'configur'"):
        otel_audit.configur  # type: ignore[attr-defined]  # noqa: B018 - what happens then is what is tested


def test_the_names_are_listed_before_they_are_loaded() -> None:
    assert set(otel_audit.__all__) <= set(dir(otel_audit))


def test_a_star_import_gives_the_public_names() -> None:
    namespace: dict[str, object] = {}

    exec("from otel_audit import *", namespace)

    assert set(namespace) - {"__builtins__"} == set(otel_audit.__all__)


def names_in(modules: list[ModuleType]) -> list[tuple[ModuleType, str]]:
    """Each public name beside its module."""
    return [(module, name) for module in modules for name in getattr(module, "__all__", [])]


def public_attributes(module: ModuleType) -> set[str]:
    return {name for name in vars(module) if not name.startswith("_")}


def own_doc(one: object) -> str | None:
    """The docstring of the thing itself, not one that it inherits or that a dataclass was given."""
    doc = getattr(one, "__dict__", {}).get("__doc__") if inspect.isclass(one) else getattr(one, "__doc__", None)
    return None if inspect.isclass(one) and doc and doc.startswith(f"{one.__name__}(") else doc


def ruff_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order that `ruff` keeps (RUF022)."""
    plain = name.lstrip("_")
    return (0 if plain.isupper() and len(plain) > 1 else 1 if name[0].isupper() else 2), name


@functools.cache
def tree_of(name: str) -> ast.Module:
    """The source of a module, without running it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def imports_between_modules() -> list[tuple[str, str, str]]:
    """Who imports, from where, and what."""
    return [
        (name, node.module, alias.name)
        for name in MODULES
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    ]
