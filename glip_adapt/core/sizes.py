"""Sizes of images in pixels."""

from __future__ import annotations

SizeHW = tuple[int, int]
"(height, width)"

DIVISOR = 32
"pixels; sides of a padded image are multiples of it"
