"""The law of CONTRIBUTING.md: imports go down the floors only, packages have a home, no circle, no grab bag."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "glip_adapt"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
ROOT_FILES = {"__init__.py", "__main__.py", "py.typed"}
GRAB_BAGS = {"utils", "util", "helpers", "helper", "misc", "common"}
MOST_LINES = 450


def table(marker: str) -> list[list[str]]:
    """Return the cells of the table of CONTRIBUTING.md that follows a marker, without its heading."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")[2]
    rows = text.partition("\n\n")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def named(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


FLOORS = {named(room)[0]: int(floor) for floor, room, _ in table("rooms")}
HOMES = {package: named(homes) for packages, homes in table("homes") for package in named(packages)}


def imported(source: str, path: str) -> list[tuple[int, str]]:
    """Return (line, dotted name) of everything that ``source`` imports, wherever the statement stands."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = ["glip_adapt", *path.split("/")[:-1]]
                module = ".".join(filter(None, [*here[: len(here) - node.level + 1], module]))
            names += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return names


def violations(source: str, path: str) -> list[str]:
    """Return what ``source`` would break as the file ``path`` of the package."""
    room = path.split("/")[0]
    floor = max(FLOORS.values()) + 1 if path in ROOT_FILES else FLOORS.get(room)
    if floor is None:
        return [f"{path} is in no room of CONTRIBUTING.md"]
    found = []
    for line, name in imported(source, path):
        top, *parts = name.split(".")
        if top in HOMES and not path.startswith(HOMES[top]):
            found.append(f"{path}:{line} imports {top}, at home in {', '.join(HOMES[top])}")
        if top != "glip_adapt" or (parts and parts[0] == room):
            continue
        # A public name belongs to the package itself, which knows all rooms: only the command line may use it.
        theirs = FLOORS.get(parts[0], max(FLOORS.values()) - 0.5) if parts else max(FLOORS.values()) - 0.5
        if theirs >= floor:
            found.append(f"{path}:{line} imports {name} from floor {theirs} into floor {floor}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{path}:{node.lineno} prints; log, or return what the command line shall print")
    if GRAB_BAGS.intersection(path.removesuffix(".py").split("/")):
        found.append(f"{path} is a grab bag: give the helper to its caller, or the file the name of its subject")
    if len(source.splitlines()) > MOST_LINES:
        found.append(f"{path} has {len(source.splitlines())} lines, more than {MOST_LINES}")
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", [path for path in FILES if path != "__init__.py"])
def test_a_file_keeps_to_its_floor_and_its_packages(path):
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


def test_nothing_else_lies_in_the_root():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == ROOT_FILES
    assert {path.name for path in PACKAGE.iterdir() if any(path.rglob("*.py"))} == set(FLOORS)


def test_every_home_exists():
    assert [home for homes in HOMES.values() for home in homes if not (PACKAGE / home).exists()] == []


def test_only_the_room_of_the_trunks_names_a_family_that_came_later():
    """Methods, engine, benchmarks and verbs work for any family, so that none of them needs a branch.

    Assets are weights of trunks, with a card for each.
    """
    texts = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".toml", ".csv", ".md", ".txt"}]
    naming = {path.relative_to(PACKAGE).parts[0] for path in texts if "dino" in path.read_text("utf-8").lower()}
    assert naming == {"trunks", "assets"}


def modules_used(path: str) -> set[str]:
    """Return the files of the package that a file imports from, at any place in it."""
    used = set()
    for _, name in imported((PACKAGE / path).read_text(encoding="utf-8"), path):
        parts = name.split(".")[1:] if name.startswith("glip_adapt.") else []
        for length in (len(parts), len(parts) - 1):
            if length > 0 and (file := "/".join(parts[:length]) + ".py") in FILES:
                used.add(file)
                break
    return used


def test_no_two_files_need_each_other():
    needs = {path: modules_used(path) for path in FILES if path != "__init__.py"}
    while free := [path for path, others in needs.items() if not others & needs.keys()]:
        for path in free:
            del needs[path]
    assert needs == {}, "these files are part of a circle, or lean on one"


def test_the_package_itself_names_its_parts_only_for_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not is_type_checking(node)]
    assert {name.split(".")[0] for _, name in imported(ast.unparse(tree), "__init__.py")} <= {
        "__future__", "importlib", "typing",
    }  # fmt: skip


def test_only_the_package_itself_imports_by_string():
    dynamic = [path for path in FILES if "import_module(" in (PACKAGE / path).read_text(encoding="utf-8")]
    assert dynamic == ["__init__.py"]


PLANTED = {
    "a higher floor": ("engine/detector.py", "from glip_adapt.bench.plan import BenchPlan"),
    "another room of the same floor": ("data/split.py", "from glip_adapt.trunks.glip.anchors import STRIDES"),
    "the same, by the package": ("data/split.py", "from glip_adapt import trunks"),
    "a relative import": ("trunks/glip/network.py", "from ...data import coco"),
    "inside a function": ("core/boxes.py", "def f():\n    from glip_adapt.trunks.glip import objective"),
    "inside a method, below try": (
        "core/boxes.py",
        "class A:\n  def f(self):\n    try: import glip_adapt.cli\n    finally: 1",
    ),
    "for type checkers": ("core/config.py", "if TYPE_CHECKING:\n    from glip_adapt.engine.train import fit"),
    "a public name of the package": ("bench/plan.py", "from glip_adapt import fit"),
    "the package, below the command line": ("engine/train.py", "import glip_adapt"),
    "bench from share": ("share/hub.py", "from glip_adapt.bench.records import RunRecord"),
    "transformers": ("adapters/lora.py", "import transformers"),
    "a submodule away from home": ("bench/report/write.py", "from timm.layers import Mlp"),
    "inside a function, away from home": ("cli/app.py", "def draw():\n    import matplotlib.pyplot as plt"),
    "print": ("engine/train.py", "def f():\n    print('hello')"),
    "a grab bag": ("data/utils.py", ""),
    "a grab bag of a folder": ("trunks/common/boxes.py", ""),
    "too many lines": ("engine/train.py", "x = 1\n" * (MOST_LINES + 1)),
    "a file without a room": ("extras.py", ""),
}
SOUND = {
    "lower floors": ("engine/train.py", "from glip_adapt.adapters.lora import Lora\nfrom glip_adapt.core import boxes"),
    "its own room": ("trunks/glip/network.py", "from glip_adapt.trunks.glip import tower\nfrom .head import Head"),
    "homes": ("trunks/bert.py", "import torch\nfrom transformers import BertModel"),
    "another package of the same beginning": ("engine/train.py", "import richer\nimport timmy.layers"),
    "everything below the command line": ("cli/app.py", "import glip_adapt\nfrom glip_adapt.bench.plan import RunKey"),
    "a method called print": ("engine/train.py", "console.print('hello')"),
    "a full file": ("engine/train.py", "x = 1\n" * MOST_LINES),
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_checker_catches_a_planted_violation(what):
    path, source = PLANTED[what]
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize("what", SOUND)
def test_the_checker_lets_sound_code_pass(what):
    path, source = SOUND[what]
    assert violations(source, path) == []
