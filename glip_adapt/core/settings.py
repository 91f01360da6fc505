"""Settings that several rooms share."""

from __future__ import annotations

from typing import Literal

Shots = int | Literal["all"]
"""Images per class to learn from; ``"all"`` for a whole training split."""
