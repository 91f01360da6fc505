"""Base class of the library's own errors, and kinds that several rooms raise.

A kind that one file raises is defined there. Each kind also derives from the built-in error that fits.
"""

from __future__ import annotations


class GlipAdaptError(Exception):
    """Base of all errors that this library defines."""


class UnknownNameError(GlipAdaptError, ValueError):
    """A name is not one of the choices; the message lists them, and names the nearest."""
