"""Imports go one way. Held over the source of every module, those inside functions and type-checking blocks too."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import otel_audit

PACKAGE = Path(otel_audit.__file__).parent

# From the bottom up: a module imports from its own layer and from those before it. A name stands for the module or
# subpackage and all that is in it.
LAYERS: list[set[str]] = [
    {"_version", "errors", "ids", "json_values", "threads", "notices", "moments", "http_server"},
    {"settings"},
    {"event_schema"},
    {"event", "redaction"},
    {"fast_line"},
    {"records"},
    {"signing"},
    {"journal"},
    {"delivery"},
    {"stores", "trail", "sinks", "policy", "diagnosis"},
    {"loss", "query", "verification", "replaying"},
    {"reporting"},
    {"recorder"},
    {"operation"},
    {"logger"},
    {"configuration", "access"},
    {"integrations", "testing", "viewing"},
    {"cli"},
]

# Sharper than the layers: what these may import of the package at all.
ONLY: dict[str, set[str]] = {
    "errors": set(),
    "ids": set(),
    "json_values": set(),
    "threads": set(),
    "http_server": set(),
    "notices": {"threads"},
    "moments": {"errors"},
    "_version": set(),
    "event_schema": set(),
    "event": {"event_schema", "json_values"},
    "settings": {"settings", "errors"},
    "records": {"records", "event_schema", "errors", "ids"},
    "policy": {"policy", "records", "event", "event_schema", "settings", "errors"},
    "sinks": set(),
    "signing": {"signing", "errors", "threads"},
    # Lines and hashes, not OTel and not what an event is.
    "journal": {"journal", "signing", "settings", "errors", "notices", "ids", "threads", "_version"},
}

# Most have far fewer: what is longer holds two things.
LINES_MAX = 500

# The journal, for one, knows no OTel.
NOT_OF_OTEL = {"signing", "journal", "event", "event_schema", "errors", "notices", "sinks", "redaction", "policy"}
# Private modules of OTel break between releases: tests/delivery/test_otel_logs.py says what these need of them.
PRIVATE_OTEL = {"records/sdk.py", "delivery/suppression.py"}


def parts_of(module: str) -> list[Path]:
    path = PACKAGE / f"{module}.py"
    return [path] if path.is_file() else sorted((PACKAGE / module).rglob("*.py"))


@functools.cache
def modules() -> list[str]:
    """The modules and subpackages directly in the package."""
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    return sorted(files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")})


@functools.cache
def imported(path: Path) -> list[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports."""
    return list(_imported(path))


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected a full name, got a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(module: str) -> Iterator[tuple[str, str]]:
    """Where a module imports something of the package, and which module or subpackage that is in."""
    for path in parts_of(module):
        for line, name in imported(path):
            steps = name.split(".")
            if steps[0] == "otel_audit":
                target = steps[1] if len(steps) > 1 and steps[1] in modules() else "__init__"
                yield f"{path.relative_to(PACKAGE)}:{line}", target


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def test_every_module_has_its_place_in_the_order() -> None:
    placed = [name for layer in LAYERS for name in layer]

    assert len(placed) == len(set(placed))
    assert set(modules()) - set(placed) == set(), "give the new module its layer in LAYERS"


def test_a_module_imports_only_from_its_own_layer_and_those_below() -> None:
    found = []
    for module in modules():
        allowed = {name for layer in LAYERS[: layer_of(module) + 1] for name in layer}
        found += [f"{where} imports {target}" for where, target in own_imports(module) if target not in allowed]

    assert found == []


def test_the_lowest_modules_import_no_more_than_they_must() -> None:
    found = [
        f"{where} imports {target}"
        for module in sorted(set(ONLY) & set(modules()))
        for where, target in own_imports(module)
        if target not in ONLY[module]
    ]

    assert found == []


def test_no_module_imports_the_package_itself() -> None:
    found = [where for module in modules() for where, target in own_imports(module) if target == "__init__"]

    assert found == []


def test_files_import_each_other_in_no_circle() -> None:
    names = {dotted(path): path for path in PACKAGE.rglob("*.py")}
    graph = {
        name: {known for _, full in imported(path) if (known := longest(full, names)) is not None and known != name}
        for name, path in names.items()
    }

    assert circle_in(graph) is None


def test_what_needs_no_opentelemetry_does_not_import_it() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for module in sorted(NOT_OF_OTEL & set(modules()))
        for path in parts_of(module)
        for line, name in imported(path)
        if name.startswith("opentelemetry")
    ]

    assert found == []


def test_what_is_private_in_opentelemetry_is_imported_in_two_places() -> None:
    private = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for _, name in imported(path)
        if name.startswith("opentelemetry.") and any(step.startswith("_") for step in name.split("."))
    }

    assert private == PRIVATE_OTEL


def test_settings_is_a_package() -> None:
    assert (PACKAGE / "settings" / "__init__.py").is_file()


def test_an_init_file_only_re_exports() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {type(node).__name__}"
        for path in sorted(PACKAGE.rglob("__init__.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if not (is_re_export(node) or (path == PACKAGE / "__init__.py" and loads_names(node)))
    ]

    assert found == []


def test_no_file_is_called_by_a_word_that_says_nothing() -> None:
    empty = {"util", "utils", "helper", "helpers", "common", "base", "manager", "misc"}

    assert [path for path in PACKAGE.rglob("*.py") if empty & set(path.stem.split("_"))] == []


def is_re_export(node: ast.stmt) -> bool:
    match node:
        case ast.ImportFrom() | ast.Import() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def loads_names(node: ast.stmt) -> bool:
    """Whether it is part of what loads the names of the package when they are first used."""
    match node:
        case ast.Assign(targets=[ast.Name(id="_HOME")], value=ast.Dict()):
            return True
        case ast.If(test=ast.Attribute(attr="TYPE_CHECKING"), orelse=[]):
            return all(isinstance(each, ast.ImportFrom) for each in node.body)
        case ast.If(test=ast.UnaryOp(op=ast.Not(), operand=ast.Attribute(attr="TYPE_CHECKING")), orelse=[]):
            return [each.name for each in node.body if isinstance(each, ast.FunctionDef)] == ["__getattr__", "__dir__"]
    return False


def dotted(path: Path) -> str:
    steps = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(steps[:-1] if steps[-1] == "__init__" else steps)


def longest(full: str, names: dict[str, Path]) -> str | None:
    """The module that an imported name is in, or is."""
    steps = full.split(".")
    candidates = (".".join(steps[:count]) for count in range(len(steps), 0, -1))
    return next((name for name in candidates if name in names), None)


def circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for target in sorted(graph[name]):
            if found := visit(target, [*path, name]):
                return found
        finished.add(name)
        return None

    for name in sorted(graph):
        if found := visit(name, []):
            return found
    return None


def test_no_file_is_longer_than_can_be_read_at_one_go() -> None:
    checkout = PACKAGE.parent
    folders = [PACKAGE, checkout / "tests", checkout / "benchmarks", checkout / "examples"]
    lines = {path: path.read_text().count("\n") for folder in folders for path in folder.rglob("*.py")}

    assert {path: count for path, count in lines.items() if count > LINES_MAX} == {}


HEAVY = ["grpc", "requests", "rich", "google.protobuf", "yaml", "pydantic", "opentelemetry.sdk"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import otel_audit", HEAVY),
        (
            "import otel_audit\notel_audit.configure",
            ["grpc", "requests", "rich", "google.protobuf", "yaml", "pydantic"],
        ),
        (
            "from otel_audit import AuditMiddleware, configure",
            ["grpc", "requests", "rich", "google.protobuf", "yaml", "pydantic"],
        ),
        ("import otel_audit.cli.command", HEAVY),
        ("import otel_audit.cli.query", ["grpc", "requests", "yaml", "pydantic", "opentelemetry.sdk", "duckdb"]),
    ],
    ids=["package", "configure", "service", "command", "query"],
)
def test_importing_loads_only_what_is_used(program: str, unwanted: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert [name for name in unwanted if name in done.stdout.split()] == []


@pytest.mark.processes
def test_a_logger_loads_no_client_and_no_colour_before_an_exporter_needs_them(tmp_path: Path) -> None:
    program = (
        "import sys, otel_audit, otel_audit.integrations.otel_logs\n"
        f"otel_audit.configure(directory={str(tmp_path)!r}, export='jsonl', service_name='shop').close()\n"
        "print(*sorted({'requests', 'urllib3', 'grpc', 'rich'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


# Brought by whoever uses the integration or the pytest plugin, so that it cannot be missing where it is imported.
BROUGHT = {"fastapi", "fastmcp", "mcp", "opentelemetry-instrumentation", "pytest", "starlette", "wrapt"}
# Each in exactly the version that a declared one wants.
PINNED = {
    "opentelemetry-api",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-proto",
    "pydantic-core",
}


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["query"], *extras["zstd"]]
    declared = {canonicalize_name(Requirement(each).name) for each in needs}
    names = {name for path in PACKAGE.rglob("*.py") for name in imported_elsewhere(path)}
    files = {name.replace(".", "/") + end: name for name in names for end in (".py", "/__init__.py")}

    owners = {
        files[str(file)]: canonicalize_name(each.metadata["Name"])
        for each in distributions()
        for file in each.files or ()
        if str(file) in files
    }
    assert {"urllib3", "google.protobuf.message", "google.rpc.status_pb2"} <= owners.keys()
    assert {name: owner for name, owner in owners.items() if owner not in declared | BROUGHT | PINNED} == {}


def imported_elsewhere(path: Path) -> Iterator[str]:
    """The modules of other packages that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        yield from (name for name in names if name.partition(".")[0] not in {"otel_audit", *sys.stdlib_module_names})
