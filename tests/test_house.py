"""The rules of the house: who may import whom, what files are called, what has a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "infra": set(),
    "operators": {"infra"},
    "tokenize_offline": {"infra"},
    "packing": {"infra"},
    "trainer": {"packing", "infra"},
    "pipelines": {"operators", "tokenize_offline", "packing", "trainer", "infra"},
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "base", "util", "misc", "helper"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: write the package's name"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_stands_below_them(package: str) -> None:
    assert modules(package)
    for path in modules(package):
        ours = {name.partition(".")[0] for name in imported(path)} & MAY_IMPORT.keys()
        wrong = ours - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
        assert "tests" not in imported(path)


def test_ray_is_imported_in_two_places_only() -> None:
    for package in MAY_IMPORT.keys() - {"pipelines"}:
        for path in modules(package):
            uses = any(name.partition(".")[0] == "ray" for name in imported(path))
            assert not uses or path == ROOT / "infra/cluster.py", path


def test_top_level_names() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_files_are_named_after_what_is_in_them(package: str) -> None:
    for path in modules(package):
        assert path.stem not in FORBIDDEN_NAMES, path
        if path.stem != "__init__":
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert docstring, f"{path.relative_to(ROOT)} does not say what it is"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_module_has_a_test_of_its_own(package: str) -> None:
    for path in modules(package):
        operator = package != "operators" or has_operator(path)
        if package in ("operators", "infra") and path.stem != "__init__" and operator:
            test = ROOT / "tests" / package / f"test_{path.stem}.py"
            assert test.exists(), f"{path.relative_to(ROOT)} has no {test.relative_to(ROOT)}"


def has_operator(path: Path) -> bool:
    """Whether a file defines a class with reads, writes and a call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            names = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            fields = {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            if "__call__" in names and {"reads", "writes"} <= names | fields:
                return True
    return False


def test_exceptions_are_not_swallowed() -> None:
    """The decode boundaries alone catch everything: decoders raise whatever they like."""
    boundaries = {ROOT / f"infra/{name}.py" for name in ("pixels", "video", "video_process")}
    for package in MAY_IMPORT:
        for path in modules(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ExceptHandler):
                    caught = node.type.id if isinstance(node.type, ast.Name) else "…"
                    wide = node.type is None or caught in ("Exception", "BaseException")
                    assert not wide or path in boundaries, (path, node.lineno)


@pytest.mark.parametrize("module", ["packing.reader", "trainer", "infra.layout", "infra.schedules"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = "ray open_clip duckdb cv2 PIL transformers deepspeed numba pipelines".split()
    code = (
        f"import sys, {module}\n"
        f"found = {set(heavy)} & {{name.partition('.')[0] for name in sys.modules}}\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", sorted(MAY_IMPORT.keys() - {"pipelines"}))
def test_importing_a_package_does_not_start_ray(package: str) -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules(package)
        if path != ROOT / "infra/cluster.py" and path.parent.name != "weights"
    ]
    code = f"import sys, {', '.join(names)}\nassert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_lists_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in MAY_IMPORT:
        section = readme.split(f"\n{package}/ ")[1].split("\n```")[0]
        for path in (ROOT / package).glob("[!_]*.py"):
            assert f"\n  {path.name} " in section, f"README.md does not list {package}/{path.name}"
