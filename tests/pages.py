"""Code blocks of Markdown pages, and how they run: as printed, in a folder of their own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
NOT_HERE = {  # what a mark before a block says, and why the tests leave such a block alone
    "needs weights": "of a released trunk, from the Hub",
    "needs network": "the Hub, a package registry or the host of a dataset",
    "needs hours": "a whole benchmark; pages show its --dry-run as well",
    "needs minutes": "an installation, or a long command, which has tests of its own",
}
_BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the comment on the line before it."""

    place: str
    language: str
    code: str
    mark: str

    @property
    def runs(self) -> bool:
        """Whether it runs here."""
        return self.mark not in NOT_HERE


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(f"{path.name}:{text.count(chr(10), 0, match.start(2)) + 1}", match[2], match[3], match[1] or "")
        for match in _BLOCK.finditer(text)
    ]


@dataclass
class Story:
    """Runs the blocks of a page one after the other in the working folder, with one set of Python names.

    Attributes:
        glip: runs a command line; returns exit code, standard output and standard error.
        added: by verb, words to put before those of a page, such as some that shorten a training.
        names: of the Python blocks so far.
    """

    glip: Callable[..., tuple[int, str, str]]
    added: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, path: Path) -> None:
        """Run all blocks of a page that can run here."""
        for block in blocks(path):
            if block.runs:
                self.run_block(block)

    def run_block(self, block: Block) -> None:
        """Run Python and command lines; write a TOML or YAML file; look for the files that a block of text lists."""
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), self.names)
        elif block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                self._command(shlex.split(line, comments=True), block.place)
        elif block.language in ("toml", "yaml"):
            Path(re.match(rf"# (\S+\.{block.language})\n", block.code)[1]).write_text(block.code, encoding="utf-8")
        elif block.language == "text":
            for line in block.code.splitlines():
                assert Path(line.split()[0]).exists(), f"{block.place}: {line.split()[0]} is not there"
        else:
            raise AssertionError(f"{block.place}: {block.language!r} is no language of these pages")

    def _command(self, words: list[str], place: str) -> None:
        if not words:
            return
        assert words[0] == "glip-adapt", f"{place}: only glip-adapt runs here; mark the block: {sorted(NOT_HERE)}"
        code, _, err = self.glip(words[1], *self.added.get(words[1], []), *words[2:])
        assert code == 0, f"{place}: {' '.join(words)}\n{err}"
