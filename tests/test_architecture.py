"""The rules of docs/DESIGN that a machine can check: who imports whom, and what is called how."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import rankc
from rankc.backends import RUNTIMES
from rankc.optimizer.formats import LINEAR, TABLE, UNPLACED
from rankc.optimizer.ir.torchapi import captured_operators
from rankc.optimizer.precision.linear_format import linear_format
from rankc.optimizer.precision.table_formats import table_format
from rankc.passes import PASSES

ROOT = Path(rankc.__file__).parent
PACKAGES = ("optimizer", "passes", "frontends", "backends", "models")
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.py"), *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")))
)
STDLIB = sys.stdlib_module_names
#: Torch's own internals that are named outside of torchapi.py, and why.
PRIVATE: dict[str, set[str]] = {
    # The class of operators; passes may as well take it from torchapi.
    "passes/eliminate.py": {"torch._ops", "torch._ops.OpOverload"},
    "passes/fold_constants.py": {"torch._ops", "torch._ops.OpOverload"},
}


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imports(path: Path) -> set[str]:
    """What a file imports, with ours as paths below the package: ``optimizer.ir.program``."""
    package = ["rankc", *path.parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` may import a module; `from .m import name` imports m.
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name.removeprefix("rankc.") for name in imports(path) if name.startswith("rankc.")}


def theirs(path: Path) -> set[str]:
    tops = {name.split(".")[0] for name in imports(path)}
    return {top for top in tops if top not in STDLIB and top != "rankc"}


def within(folder: str) -> list[Path]:
    return [path for path in SOURCES if path.as_posix().startswith(f"{folder}/")]


def test_the_sources_are_found() -> None:
    assert len(SOURCES) > 60
    assert Path("optimizer/ir/program.py") in SOURCES
    assert "optimizer.ir" in ours(Path("passes/canonicalize.py"))
    assert ours(Path("optimizer/ir/program.py")) >= {"optimizer.errors", "optimizer.ir.torchapi"}


@pytest.mark.parametrize("path", within("models"), ids=str)
def test_models_import_nothing_of_ours(path: Path) -> None:
    assert theirs(path) <= {"torch", "numpy", "pandas", "pyarrow"}
    assert all(name.split(".")[0] == "models" for name in ours(path))


@pytest.mark.parametrize("path", within("optimizer/ir"), ids=str)
def test_the_ir_imports_torch_only(path: Path) -> None:
    assert theirs(path) <= {"torch"}
    outside = {name for name in ours(path) if not name.startswith("optimizer.ir")}
    assert outside <= {"optimizer.errors"}


@pytest.mark.parametrize("path", within("optimizer"), ids=str)
def test_the_optimizer_reaches_down_through_the_registry_only(path: Path) -> None:
    others = {name for name in ours(path) if name.split(".")[0] in PACKAGES[1:]}
    assert others == set()


@pytest.mark.parametrize("folder", ["passes", "frontends", "backends"])
def test_the_three_never_import_one_another(folder: str) -> None:
    for path in within(folder):
        tops = {name.split(".")[0] for name in ours(path)}
        assert tops <= {"optimizer", folder}, path


@pytest.mark.parametrize("path", within("passes"), ids=str)
def test_passes_do_not_import_one_another(path: Path) -> None:
    assert not {name for name in ours(path) if name.startswith("passes.")}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_inside_the_library_are_relative(path: Path) -> None:
    absolute = [
        node.lineno
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "") == "rankc")
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankc."))
        or (isinstance(node, ast.Import) and any(a.name.startswith("rankc") for a in node.names))
    ]
    assert absolute == []


# --- the house ------------------------------------------------------------------------------------

#: The parts of `optimizer/`, ground first. What a part imports stands before it, also where it only
#: does for a type or inside of a function.
LINE = (
    *("errors", "plugins", "fitting", "interrupts", "formats", "timing", "ir", "target", "runtime"),
    *(
        "backend",
        "registry",
        "data",
        "analysis",
        "compare",
        "quality",
        "report",
        "requests",
        "capture",
    ),
    *("training", "pipeline", "heads", "precision", "pruning", "amendments", "artifact"),
    *("milestones", "lowering", "diagnose", "driver", "replan", "cli_verify", "progress_bar"),
    *("cli_console", "cli_arguments", "cli_diagnose", "cli_show", "cli"),
)


def arrows(root: Path) -> set[tuple[str, str]]:
    """Which file imports which, as ``quality.gate``; all imports, wherever they stand."""
    paths = [path.relative_to(root) for path in (root / "optimizer").rglob("*.py")]
    modules = {
        ".".join(path.with_suffix("").parts[1:]).removesuffix("__init__").rstrip(".")
        for path in paths
    }
    found: set[tuple[str, str]] = set()
    for path in paths:
        module = ".".join(path.with_suffix("").parts[1:]).removesuffix("__init__").rstrip(".")
        package = path.parts[:-1]
        for node in ast.walk(ast.parse((root / path).read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                name = ".".join([*filter(None, base[1:]), alias.name])
                while name and name not in modules:
                    name = name.rpartition(".")[0]
                if name and name != module:
                    found.add((module, name))
    return found


def wrong_way(root: Path) -> list[str]:
    """Imports that go against the line, and circles within a part."""
    found = arrows(root)
    against = [
        f"{one} imports {other}"
        for one, other in sorted(found)
        if LINE.index(other.split(".")[0]) > LINE.index(one.split(".")[0])
    ]
    parts = nx.strongly_connected_components(nx.DiGraph(found))
    circles = [f"a circle: {', '.join(sorted(part))}" for part in parts if len(part) > 1]
    return against + circles


def test_every_part_stands_in_the_line() -> None:
    parts = {path.parts[1].removesuffix(".py") for path in within("optimizer")} - {"__init__"}
    assert parts == set(LINE)


def test_the_picture_shows_the_line() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (picture,) = [part for part in text.split("```mermaid")[1:] if "errors -->" in part]
    lines = [line.strip().split(" --> ") for line in picture.split("```")[0].splitlines()]
    shown = [name for line in lines if len(line) > 1 for name in line]
    assert list(dict.fromkeys(shown)) == list(LINE)


def test_imports_go_one_way() -> None:
    assert wrong_way(ROOT) == []


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ("from ..driver import optimize", "quality.planted imports driver"),
        ("if TYPE_CHECKING:\n    from ..driver import optimize", "quality.planted imports driver"),
        ("def late():\n    from ..artifact import race", "quality.planted imports artifact.race"),
        ("from . import circle", "a circle: quality.circle, quality.planted"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, planted: str, told: str) -> None:
    for name in ("driver.py", "artifact/race.py", "quality/circle.py", "quality/planted.py"):
        (tmp_path / "optimizer" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "optimizer" / name).write_text("")
    (tmp_path / "optimizer/quality/circle.py").write_text("from . import planted\n")
    (tmp_path / "optimizer/quality/planted.py").write_text(planted + "\n")
    assert wrong_way(tmp_path) == [told]


# --- hooks have names -----------------------------------------------------------------------------


def overridden(root: Path, paths: list[Path]) -> list[str]:
    """Underscore methods that a class overrides of a base in another file, as ``file: A._x``."""
    classes: dict[tuple[Path, str], ast.ClassDef] = {}
    names: dict[Path, dict[str, tuple[Path, str]]] = {}
    for path in paths:
        names[path] = {}
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.ClassDef):
                classes[path, node.name] = node
                names[path][node.name] = (path, node.name)
            elif isinstance(node, ast.ImportFrom) and node.level:
                package = path.parts[: len(path.parts) - node.level]
                place = Path(*package, *(node.module or "").split(".")).with_suffix(".py")
                for alias in node.names:
                    names[path][alias.asname or alias.name] = (place, alias.name)

    def above(path: Path, node: ast.ClassDef) -> list[tuple[Path, ast.ClassDef]]:
        found = []
        for base in node.bases:
            key = names[path].get(ast.unparse(base).partition("[")[0])
            if key in classes:
                found += [(key[0], classes[key]), *above(key[0], classes[key])]
        return found

    def private(node: ast.ClassDef) -> set[str]:
        held = {n.name for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
        held |= {ast.unparse(n.target) for n in node.body if isinstance(n, ast.AnnAssign)}
        held |= {ast.unparse(t) for n in node.body if isinstance(n, ast.Assign) for t in n.targets}
        return {name for name in held if name.startswith("_") and not name.endswith("__")}

    return sorted(
        f"{path.as_posix()}: {name}.{method}"
        for (path, name), node in classes.items()
        for base, parent in above(path, node)
        if base != path
        for method in private(node) & private(parent)
    )


def test_no_underscore_method_is_overridden_in_another_file() -> None:
    assert overridden(ROOT, SOURCES) == []


def test_an_overridden_underscore_method_is_found(tmp_path: Path) -> None:
    base = "class A:\n    _kind = 1\n    def _hook(self): ...\n    def __len__(self): ...\n"
    child = "from ..base import A as B\nclass C(B):\n    _kind: int = 2\n    def _hook(self): ...\n"
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.py").write_text(base + "class D(A):\n    def _hook(self): ...\n")
    (tmp_path / "deep/child.py").write_text(child + "    def __len__(self): ...\n")
    found = overridden(tmp_path, [Path("base.py"), Path("deep/child.py")])
    assert found == ["deep/child.py: C._hook", "deep/child.py: C._kind"]


def test_backends_that_read_onnx_do_not_import_one_another() -> None:
    readers = [path for path in within("backends") if "backends.onnx.base" in ours(path)]
    assert len(readers) > 2
    for path in within("backends"):
        if path.parts[1] != "onnxruntime":
            assert "backends.onnxruntime.backend" not in ours(path), path


# --- what opens an artifact -----------------------------------------------------------------------

#: Where opening an artifact begins.
OPENED = (
    Path("optimizer/artifact/artifact.py"),
    Path("optimizer/backend.py"),
    Path("optimizer/precision/explain.py"),
    Path("optimizer/report/report.py"),
    Path("optimizer/cli.py"),
    *(
        Path("backends", *place.partition(":")[0].split(".")).with_suffix(".py")
        for place in RUNTIMES.values()
    ),
)
#: What takes long to import, and what a machine that serves needn't have.
HEAVY = {"torch", "scipy", "onnx", "onnx_ir", "onnxscript", "networkx", "rich", "pandas"}


def first_imports(path: Path, root: Path = ROOT) -> tuple[set[Path], set[str]]:
    """Ours and others' modules that importing a file imports: what stands in no function."""
    package, ours_, others = path.parts[:-1], set[Path](), set[str]()
    pending: list[ast.stmt] = list(ast.parse((root / path).read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            place = "/".join(base).replace(".", "/")
            for name in (place, *(f"{place}/{alias.name}" for alias in node.names)):
                ours_ |= {Path(f"{name}.py"), Path(name, "__init__.py")}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            pending += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
    ours_ |= {Path(*package[:depth], "__init__.py") for depth in range(len(package) + 1)}
    return {p for p in ours_ if (root / p).exists()}, others - STDLIB


def reached(start: Path, root: Path = ROOT) -> dict[Path, set[str]]:
    """Every file of ours that importing one imports, with what it imports of others."""
    found: dict[Path, set[str]] = {}
    pending = [start]
    while pending:
        path = pending.pop()
        if path not in found:
            ours_, found[path] = first_imports(path, root)
            pending += ours_
    return found


@pytest.mark.parametrize("start", OPENED, ids=str)
def test_what_opens_an_artifact_imports_nothing_heavy(start: Path) -> None:
    heavy = {path.as_posix(): sorted(tops & HEAVY) for path, tops in reached(start).items()}
    assert {path: tops for path, tops in heavy.items() if tops} == {}


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("import torch", {"torch"}),
        ("try:\n    from torch import fx\nexcept ImportError:\n    pass", {"torch"}),
        ("class A:\n    import scipy.stats", {"scipy"}),
        ("if TYPE_CHECKING:\n    import torch", set()),
        ("def late():\n    import torch", set()),
    ],
)
def test_a_heavy_import_is_found(tmp_path: Path, planted: str, found: set[str]) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/__init__.py").write_text("")
    (tmp_path / "deep/planted.py").write_text(planted + "\n")
    (tmp_path / "start.py").write_text("from .deep.planted import late\n")
    tops = set[str]().union(*reached(Path("start.py"), tmp_path).values())
    assert tops & HEAVY == found


# --- number formats -------------------------------------------------------------------------------

#: Their names, and what some of them end in.
NAMES = {UNPLACED, *LINEAR, *TABLE, "-rows", "-weights"}
_LOOKS_UP = {"get", "pop", "setdefault", "fromkeys", "index", "count"}
_PARTS = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "split"}


def told_apart(source: str) -> list[int]:
    """The lines of a file that compare with a number format's name, or key on one."""
    lines: list[int] = []
    for node in ast.walk(ast.parse(source)):
        asked: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            asked = [*node.keys]
        elif isinstance(node, ast.Subscript):
            asked = [node.slice]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = [*node.args[:1]] if node.func.attr in _LOOKS_UP | _PARTS else []
        constants = [c for one in asked if one is not None for c in ast.walk(one)]
        lines += [
            c.lineno
            for c in constants
            if isinstance(c, ast.Constant) and isinstance(c.value, str) and c.value in NAMES
        ]
    return sorted(set(lines))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_file_tells_number_formats_apart_by_name(path: Path) -> None:
    """What a format is stands in `optimizer/formats.py`, what it does in a class of its own."""
    assert told_apart((ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        'low = precision.format == "fp8"',
        'low = name in ("int8", other)',
        'width = {"bf16": 2}[name]',
        'width = widths["bf16"]',
        'width = rates.get("fp32", 1.0)',
        'static = not name.endswith("-rows")',
        'match name:\n    case "int4-weights":\n        pass',
    ],
)
def test_a_number_format_told_apart_by_name_is_found(planted: str) -> None:
    assert told_apart(planted)


def test_naming_a_format_is_not_telling_it_apart() -> None:
    assert told_apart('target = Target("mine", device, formats=("fp8", "bf16"))') == []


@pytest.mark.parametrize("name", LINEAR)
def test_every_format_of_linears_is_a_class_of_its_own(name: str) -> None:
    made = {other: type(linear_format(other)) for other in LINEAR}
    assert linear_format(name).data is LINEAR[name]
    assert [other for other, kind in made.items() if kind is made[name]] == [name]
    assert made[name].__doc__.startswith(f"``{name}``:")


@pytest.mark.parametrize("name", TABLE)
def test_every_format_of_tables_is_a_class_of_its_own(name: str) -> None:
    made = {other: type(table_format(other)) for other in TABLE}
    assert table_format(name).data is TABLE[name]
    assert [other for other, kind in made.items() if kind is made[name]] == [name]
    assert made[name].__doc__.startswith(f"``{name}``:")


def test_one_pass_a_file_called_like_it() -> None:
    classes: dict[str, str] = {}
    for path in within("passes"):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name) and base.id == "Pass" for base in node.bases
            ):
                assert path.stem not in classes, f"{path} holds two passes"
                classes[path.stem] = node.name
                assert not node.name.endswith("Pass")
                assert ast.get_docstring(node)
    expected = {name: f"{name.replace('-', '_')}:" for name in PASSES}
    for name, place in PASSES.items():
        module, _, attribute = place.partition(":")
        assert f"{module}:" == expected[name]
        assert classes[module] == attribute
    assert set(classes) == {place.partition(":")[0] for place in PASSES.values()}


def test_the_table_of_passes_is_sorted() -> None:
    assert list(PASSES) == sorted(PASSES)


def private_names(path: Path) -> set[str]:
    """Torch's private names in a file: ``torch._ops.OpOverload``, or an import of ``torch._x``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            parts = text.split(".")
            if (
                parts[0] == "torch"
                and "ops" not in parts
                and any(p[0] == "_" and p[:2] != "__" for p in parts)
            ):
                found.add(text)
    modules = {name for name in imports(path) if name.split(".")[0] == "torch"}
    return found | {name for name in modules if "._" in name}


def test_private_torch_names_are_in_one_file() -> None:
    holders = {str(path): private_names(path) for path in SOURCES if private_names(path)}
    assert holders.pop("optimizer/ir/torchapi.py")
    assert {
        path: names for path, names in holders.items() if names - PRIVATE.get(path, set())
    } == {}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_are_short_and_called_by_what_they_hold(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= (400 if path.parts[0] == "passes" else 700)
    assert path.stem not in ("utils", "util", "common", "helpers", "helper", "manager", "misc")


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_open_keyword_arguments_and_no_environment(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and path.as_posix() not in (
            "optimizer/cli.py",
            # Where archives are cached is the one thing a data set asks the machine.
            "models/archive.py",
        ):
            assert node.attr not in ("environ", "getenv"), f"{path}:{node.lineno}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not any(alias.name == "*" for alias in node.names)


def test_importing_rankc_is_cheap() -> None:
    code = (
        "import sys, rankc, rankc.passes, rankc.backends, rankc.models\n"
        "heavy = {'torch', 'numpy', 'scipy', 'onnx', 'onnxruntime', 'pandas', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(rankc.__all__))
def test_public_names_resolve_and_are_explained(name: str) -> None:
    found: Any = getattr(rankc, name)
    assert name in dir(rankc)
    if name != "__version__":
        assert found.__doc__
        assert not found.__doc__.startswith(f"{name}(")


def test_every_lazy_name_is_public() -> None:
    assert set(rankc._PUBLIC) | {"__version__", "load"} == set(rankc.__all__)
    with pytest.raises(AttributeError, match="module 'rankc' has no attribute 'nonsense'"):
        _ = rankc.nonsense


def test_every_package_is_shipped() -> None:
    shipped = (
        (ROOT / "setup.cfg").read_text().split("packages =", 1)[1].split("install_requires")[0]
    )
    for path in SOURCES:
        if path.name == "__init__.py":
            package = ".".join(["rankc", *path.parts[:-1]])
            assert f"    {package}\n" in shipped, package


# --- operators have traits, no lists --------------------------------------------------------------

_ATEN_NAMES = captured_operators()


def _operator(node: ast.expr, names: dict[str, str]) -> str | None:
    """An operator as ``aten.view.default``, however a file spells it; or a name of ATen's."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        name = node.value.removeprefix("aten::")
        return name if name in _ATEN_NAMES else None
    text = ast.unparse(node)
    head, _, rest = text.partition(".")
    text = f"{names[head]}.{rest}".rstrip(".") if head in names else text
    return text.removeprefix("torch.ops.") if text.startswith("torch.ops.") else None


def _names(module: ast.Module) -> dict[str, str]:
    """What stands for `torch.ops`, or for an operator, in a file."""
    found: dict[str, str] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = ast.unparse(node.value)
            head, _, rest = text.partition(".")
            text = f"{found[head]}.{rest}".rstrip(".") if head in found else text
            if re.fullmatch(r"torch\.ops(\.\w+)*", text):
                found[node.targets[0].id] = text
    return found


def operator_lists(path: Path) -> list[frozenset[str]]:
    """The collections of operators in a file: displays, keys, unions and arguments of calls."""
    module = ast.parse(path.read_text(), str(path))
    names = _names(module)

    def gathered(node: ast.expr) -> set[str]:
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return {one for item in node.elts for one in gathered(item)}
        if isinstance(node, ast.Dict):
            keys = zip(node.keys, node.values, strict=True)
            return {one for key, value in keys for one in gathered(key or value)}
        if isinstance(node, ast.Starred):
            return gathered(node.value)
        if isinstance(node, ast.BinOp):
            return gathered(node.left) | gathered(node.right)
        if isinstance(node, ast.Call):
            return {one for item in node.args for one in gathered(item)}
        one = _operator(node, names)
        return set() if one is None else {one}

    kinds = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp, ast.Call)
    found = [frozenset(gathered(node)) for node in ast.walk(module) if isinstance(node, kinds)]
    return [one for one in found if len(one) >= 3]


def repeated_lists(root: Path, paths: Iterable[Path]) -> list[str]:
    """Three operators or more that are listed together in two files."""
    listed = {path: operator_lists(root / path) for path in paths}
    return sorted(
        f"{one} and {other} both list {', '.join(sorted(left & right))}"
        for one, other in combinations(listed, 2)
        for left in listed[one]
        for right in listed[other]
        if len(left & right) >= 3
    )


def test_no_list_of_operators_stands_in_two_files() -> None:
    """What an operator is like is one of its traits, in `optimizer/ir/operators.py`."""
    library = [path for path in SOURCES if path.parts[0] in PACKAGES[:-1]]
    assert repeated_lists(ROOT, library) == []


@pytest.mark.parametrize(
    "again",
    [
        "V = frozenset({_aten.view.default, _aten.permute.default, _aten.expand.default})",
        "V = {_aten.view.default: 1, _aten.permute.default: 2, _aten.expand.default: 3}",
        "e = is_op(n, _aten.view.default, _aten.permute.default, _aten.expand.default)",
        "V = (_aten.view.default, *(_aten.permute.default, _aten.expand.default))",
        "VIEW = _aten.view.default\nV = {VIEW} | {_aten.permute.default, _aten.expand.default}",
    ],
)
def test_a_list_that_is_repeated_is_found(tmp_path: Path, again: str) -> None:
    head = "_aten = torch.ops.aten\n"
    first = "V = (_aten.view.default, _aten.permute.default, _aten.expand.default, _aten.t.default)"
    (tmp_path / "one.py").write_text(head + first)
    (tmp_path / "other.py").write_text(head + again)
    listed = "aten.expand.default, aten.permute.default, aten.view.default"
    found = repeated_lists(tmp_path, [Path("one.py"), Path("other.py")])
    assert set(found) == {f"one.py and other.py both list {listed}"}


# --- tests mirror the sources ---------------------------------------------------------------------

#: What has no test file of its name, and where it is tested instead.
ELSEWHERE = {
    "backends/native/ids.py": "with the rows it shifts: tests/backends/native/test_rows.py",
    "backends/native/trial.py": "the library is loaded by it: tests/backends/native/test_rows.py",
    "frontends/check_scores.py": "every capture runs it: tests/frontends/test_export.py",
    "models": "a model a file, all held to the same laws: tests/models/test_zoo.py",
    "optimizer/artifact/benchmark.py": "it is timing: tests/optimizer/artifact/test_artifact.py",
    "optimizer/artifact/pending.py": "every artifact was pending: tests/optimizer/test_driver.py",
    "optimizer/heads/stage_consistency.py": "tests/optimizer/heads/test_consolidate.py",
    "optimizer/pruning/gradual.py": "its rounds finetune: tests/optimizer/training/test_distill.py",
    "optimizer/replan.py": "a call of optimize: tests/optimizer/precision/test_probe_cache.py",
    "optimizer/requests/equivalence.py": "tests/optimizer/requests/test_entry.py",
}


def test_each_file_of_the_library_has_a_test_of_its_name() -> None:
    """Finding what tests a file takes no thought."""
    assert len(ELSEWHERE) <= 10
    library = [p for p in SOURCES if p.parts[0] in PACKAGES and p.name != "__init__.py"]
    alone = [p for p in library if not (ROOT / "tests" / p.parent / f"test_{p.name}").exists()]
    excused = {str(p) for p in alone} | {p.parts[0] for p in alone}
    assert sorted(set(ELSEWHERE) - excused) == []  # no excuse outlives
    assert [str(p) for p in alone if not {str(p), p.parts[0]} & set(ELSEWHERE)] == []
    tested = {said.rpartition(" ")[2] for said in ELSEWHERE.values()}
    assert [path for path in sorted(tested) if not (ROOT / path).exists()] == []


def test_what_tests_share_lies_in_support() -> None:
    found = [path.name for path in (ROOT / "tests").glob("*.py")]
    assert [name for name in found if not name.startswith("test_") and name != "conftest.py"] == []
