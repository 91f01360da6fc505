"""The command line: one verb or group of verbs a file.

The rule of imports: a file here imports typer, rich and what other rooms offer without torch or another heavy package.
A verb imports the library function that it calls inside its own function, after the checks that need no network; what
imports torch is imported below ``terminal.working``, which says so. ``tests/cli/test_imports.py`` keeps it.
"""

from glip_adapt.cli.app import main

__all__ = ["main"]
