"""Put the figures of ``benchmarks/results`` into the built site, so that they are committed once.

Pages name them by their place in the repository, ``../benchmarks/results/NAME.png``, where readers of the Markdown
files see them too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_FIGURE = re.compile(r"\]\(\.\./benchmarks/results/([\w-]+\.png)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures that a page shows, as ``results/NAME.png``.

    Raises:
        FileNotFoundError: if there is no such figure.
    """
    results = Path(config.config_file_path).parent / "benchmarks" / "results"
    shown = {name for page in files.documentation_pages() for name in _FIGURE.findall(page.content_string)}
    for name in sorted(shown):
        if not (results / name).is_file():
            raise FileNotFoundError(f"A page shows {name}, and there is no such file in {results}.")
        files.append(File.generated(config, f"results/{name}", abs_src_path=str(results / name)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point the figures of a page to their copies in the site."""
    return _FIGURE.sub(r"](results/\1)", markdown)
