"""What can go wrong at the command line, with the exit code of each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = [
    "INTERRUPTED",
    "DataMissingError",
    "LabError",
    "PackageMissingError",
    "UsageError",
    "unknown",
]

INTERRUPTED = 130


class LabError(Exception):
    """A failure that one line explains; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(LabError):
    """The command asks for something that does not exist or does not fit together."""

    exit_code = 2


class PackageMissingError(UsageError):
    """An optimizer of another package is asked for that is not installed; says how to get it."""


class DataMissingError(LabError):
    """A data set is neither on this machine nor to be had; says which files belong where."""

    exit_code = 3


def unknown(kind: str, name: str, known: Sequence[str]) -> UsageError:
    """The error for a name that is not in a list, with the nearest one that is.

    >>> str(unknown("recipe", "digit-mlp", ["digits-mlp", "mnist-mlp"]))
    'no recipe "digit-mlp"; did you mean "digits-mlp"? There are: digits-mlp, mnist-mlp'
    """
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else "."
    return UsageError(f'no {kind} "{name}"{hint} There are: {", ".join(known)}')
