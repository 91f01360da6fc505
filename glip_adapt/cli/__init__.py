"""The command line: one verb or group of verbs a file."""

from glip_adapt.cli.app import main

__all__ = ["main"]
