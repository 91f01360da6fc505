"""Imports go down the levels only, third-party packages have a home, and no file is a grab bag (style.md, part 2)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "glip_adapt"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Level of a file in the package's root, or of a folder; a file imports only lower levels or its own folder.
LEVELS = {
    "structures": 0,
    "boxes": 0,
    "captions": 0,
    "config": 0,
    "whole_files": 0,
    "plain_text": 0,
    "downloads": 0,
    "model": 1,
    "data": 1,
    "draw": 1,
    "interop": 2,
    "adapters": 2,
    "cache": 3,
    "memory": 3,
    "card": 3,
    "hub": 4,
    "catalogue": 4,
    "optimise": 3,
    "prediction": 3,
    "recipes": 4,
    "features": 4,
    "tasks": 5,
    "export": 4,
    "evaluation": 5,
    "train": 6,
    "prompting": 6,
    "bench": 7,
    "__init__": 7,  # its public names come from everywhere, so only the command line may use them
    "terminal": 7,
    "cli_options": 8,
    "cli_bench": 9,
    "cli_adapt": 9,
    "cli_convert": 9,
    "cli_deploy": 9,
    "cli_data": 9,
    "cli_detect": 9,
    "cli_prompt": 9,
    "cli_share": 9,
    "cli": 10,
    "__main__": 11,
}
SAME_LEVEL = {("boxes", "structures"), ("captions", "structures")}
HOMES = {
    "transformers": {"model/text.py"},
    "tokenizers": {"model/text.py"},
    "timm": {"model/image.py"},
    "peft": {"adapters/lora.py"},
    "supervision": {"interop.py"},
    "pycocotools": {"evaluation.py", "data/coco.py", "data/check.py"},
    "pandas": {f"bench/{name}.py" for name in ("curves", "document", "figures", "published", "report", "tables")},
    "matplotlib": {
        *(f"bench/{name}.py" for name in ("comparison", "curves", "figures", "plotting", "report")),
        "data/glyphs.py",
    },
    "ray": {"bench/ray_pool.py"},
    "typer": {
        *("cli.py", "cli_adapt.py", "cli_bench.py", "cli_convert.py", "cli_data.py", "cli_deploy.py", "cli_detect.py"),
        *("cli_options.py", "cli_prompt.py", "cli_share.py"),
    },
    "rich": {"terminal.py"},
    "huggingface_hub": {"downloads.py", "model/weights.py", "hub.py"},
}
GRAB_BAGS = {"utils", "util", "helpers", "helper", "misc", "common"}
MOST_LINES = 450


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


def unit(parts: list[str]) -> str:
    """Return the entry of LEVELS for a dotted name below the package; a public name belongs to ``__init__``."""
    return parts[0] if parts and parts[0] in LEVELS else "__init__"


def violations(source: str, path: str) -> list[str]:
    """Return what ``source`` would break as the file ``path`` of the package."""
    mine = path.removesuffix(".py").split("/")[0]
    if mine not in LEVELS:
        return [f"{path} has no level: add it to LEVELS and to the layout in style.md"]
    found = []
    for line, name in imported(source, path):
        top, *parts = name.split(".")
        if top in HOMES and path not in HOMES[top]:
            found.append(f"{path}:{line} imports {top}, at home in {', '.join(sorted(HOMES[top]))}")
        if top != "glip_adapt":
            continue
        theirs = unit(parts)
        own_folder = theirs == mine and "/" in path
        if not (own_folder or LEVELS[theirs] < LEVELS[mine] or (mine, theirs) in SAME_LEVEL):
            found.append(f"{path}:{line} imports {name} of level {LEVELS[theirs]} into level {LEVELS[mine]}")
    for node in ast.walk(ast.parse(source)):
        prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if prints and path != "cli.py":
            found.append(f"{path}:{node.lineno} prints; log, or return what cli.py shall print")
    grab_bags = GRAB_BAGS.intersection(path.removesuffix(".py").split("/"))
    if grab_bags:
        found.append(f"{path} is a grab bag: give the helper to its caller, or the file the name of its subject")
    if len(source.splitlines()) > MOST_LINES:
        found.append(f"{path} has {len(source.splitlines())} lines, more than {MOST_LINES}")
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", [path for path in FILES if path != "__init__.py"])
def test_a_file_keeps_to_its_level_and_its_packages(path):
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


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
    "a higher level": ("prediction.py", "from glip_adapt.train import fit"),
    "the same level": ("cache.py", "import glip_adapt.prediction"),
    "another folder of the same level": ("data/coco.py", "from glip_adapt.model.boxes import clip"),
    "model from data, by the package": ("data/coco.py", "from glip_adapt import model"),
    "data from model": ("model/glip.py", "from glip_adapt.data import coco"),
    "a relative import": ("model/glip.py", "from ..data import coco"),
    "a relative import of the root": ("model/glip.py", "from .. import evaluation"),
    "inside a function": ("boxes.py", "def f():\n    from glip_adapt.model import loss"),
    "inside a method, below try": (
        "boxes.py",
        "class A:\n  def f(self):\n    try: import glip_adapt.cli\n    finally: 1",
    ),
    "for type checkers": ("config.py", "if TYPE_CHECKING:\n    from glip_adapt.train import FitConfig"),
    "level 0 from level 0": ("captions.py", "from glip_adapt import boxes"),
    "structures from boxes": ("structures.py", "from glip_adapt.boxes import clip"),
    "a public name of the package": ("bench/plan.py", "from glip_adapt import fit"),
    "the package, below the command line": ("train.py", "import glip_adapt"),
    "bench from train": ("train.py", "from glip_adapt.bench.records import RunRecord"),
    "transformers": ("adapters/lora.py", "import transformers"),
    "a submodule away from home": ("bench/report.py", "from timm.layers import Mlp"),
    "inside a function, away from home": ("cli.py", "def draw():\n    import matplotlib.pyplot as plt"),
    "print": ("train.py", "def f():\n    print('hello')"),
    "a grab bag": ("data/utils.py", ""),
    "a grab bag of a folder": ("model/common/boxes.py", ""),
    "too many lines": ("train.py", "x = 1\n" * (MOST_LINES + 1)),
    "a file without a level": ("extras.py", ""),
}
SOUND = {
    "lower levels": ("train.py", "from glip_adapt.evaluation import evaluate\nfrom glip_adapt import boxes, config"),
    "its own folder": ("model/glip.py", "from glip_adapt.model import fusion\nfrom .head import AlignmentHead"),
    "structures from boxes": ("boxes.py", "from glip_adapt.structures import SizeHW"),
    "homes": ("model/text.py", "import tokenizers\nfrom transformers import BertModel"),
    "another package of the same beginning": ("train.py", "import richer\nimport timmy.layers"),
    "everything below the command line": (
        "cli.py",
        "import glip_adapt\nfrom glip_adapt.bench.report import write_report",
    ),
    "a method called print": ("train.py", "console.print('hello')"),
    "a full file": ("train.py", "x = 1\n" * MOST_LINES),
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_checker_catches_a_planted_violation(what):
    path, source = PLANTED[what]
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize("what", SOUND)
def test_the_checker_lets_sound_code_pass(what):
    path, source = SOUND[what]
    assert violations(source, path) == []
