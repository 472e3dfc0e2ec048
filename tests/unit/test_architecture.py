"""What the page on the architecture says of the code is so, and the code keeps its measure."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sa_railway"
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
LONGEST = 40  # lines of a function, without its docstring


def replaced(tree):
    """Yield the attributes of a dialect or a pool that a module assigns."""
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                if not isinstance(one, ast.Attribute):
                    continue
                name = getattr(one.value, "id", getattr(one.value, "attr", None))
                if name in ("dialect", "pool"):
                    yield f"{name}.{one.attr}"


def test_all_that_is_replaced_on_an_engine_is_listed():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`(?:dialect|pool)\..*?) \| (.*?) \|", page, re.MULTILINE)
    listed = {
        (method, module)
        for methods, modules in rows
        for method in re.findall(r"`(.+?)`", methods)
        for module in re.findall(r"`(.+?)`", modules)
    }
    found = {
        (method, name.removesuffix(".py"))
        for name, path in MODULES.items()
        if not name.startswith("testing/")
        for method in replaced(ast.parse(path.read_text()))
    }
    # by setattr(), for each of a list of names
    by_name = {(method, module) for method, module in listed if module == "engine/fork"}

    assert found == listed - by_name


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_long(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            header = node.body[0].lineno - node.lineno
            assert node.end_lineno is not None  # it was parsed
            lines = header + node.end_lineno - first.lineno + 1
            assert lines <= LONGEST, f"{node.name}: {lines} lines"
