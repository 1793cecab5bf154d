"""The house: imports run one way, in no circle, and command lines stay in `cli/`."""

import ast
from pathlib import Path

import captioner

ROOT = Path(captioner.__file__).parent
FLOORS = [  # a room imports from its own floor and from those below it
    ("utils", "errors", "captioner"),
    ("models", "metrics", "image", "tokenizer", "config", "checkpoint", "hub"),
    ("api", "streaming", "outputs", "backends", "decoding", "data"),
    ("demo", "batch", "training", "evaluation", "prepare"),
    ("cli", "__main__"),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """Every module of the package by name, as a syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree, known, *, everywhere):
    """Modules of the package that one imports; those for type checkers alone do not count."""
    nodes, found = [tree], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & known or {node.module}
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return found & known


def room(module):
    """The part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def test_imports_run_one_way():
    trees = modules()
    known = set(trees)
    up = [
        f"{name} imports {other}"
        for name, tree in trees.items()
        for other in imports(tree, known, everywhere=True)
        if name != "captioner" and FLOOR[room(other)] > FLOOR[room(name)]
    ]
    assert up == []


def test_no_circle():
    trees = modules()
    graph = {name: imports(tree, set(trees), everywhere=True) for name, tree in trees.items()}
    graph["captioner"] = set()  # its public names are loaded when they are used
    while free := [name for name, others in graph.items() if not others & graph.keys() - {name}]:
        for name in free:
            del graph[name]
    assert {name: others & graph.keys() for name, others in graph.items()} == {}


def test_command_lines_stay_in_their_room():
    users = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "Namespace"
    }
    assert {name for name in users if room(name) != "cli"} == set()
