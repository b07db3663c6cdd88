"""What can go wrong at the command line, with the exit code of each: :data:`EXIT_CODES`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = [
    "EXIT_CODES",
    "INTERRUPTED",
    "DamagedError",
    "DataMissingError",
    "DivergedError",
    "LabError",
    "PackageMissingError",
    "UsageError",
    "WriteError",
    "exit_codes",
    "unknown",
]

INTERRUPTED = 130
#: what every command of ``natgrad`` exits with
EXIT_CODES = {
    0: "finished",
    1: "any other failure",
    2: "usage: the command asks for what does not exist or does not fit together",
    3: "a data set is missing",
    4: "a file is damaged: checkpoints, manifest, images",
    5: "diverged: no run came to its end with finite figures",
    6: "results can't be written: disk full, no permission",
    INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; everything is saved, --resume goes on",
}


def exit_codes() -> str:
    """The exit codes, a paragraph each, for the help."""
    return "\n\n".join(["Exit codes:", *(f"{code}  {what}" for code, what in EXIT_CODES.items())])


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


class DamagedError(LabError):
    """A file is not what was written, or no image; says which and what to do."""

    exit_code = 4


class DivergedError(LabError):
    """No run came to its end with finite figures."""

    exit_code = 5


class WriteError(LabError):
    """Results can't be written; what was saved before is whole."""

    exit_code = 6


def unknown(kind: str, name: str, known: Sequence[str]) -> UsageError:
    """The error for a name that is not in a list, with the nearest one that is.

    >>> str(unknown("recipe", "digit-mlp", ["digits-mlp", "mnist-mlp"]))
    'no recipe "digit-mlp"; did you mean "digits-mlp"? There are: digits-mlp, mnist-mlp'
    """
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else "."
    return UsageError(f'no {kind} "{name}"{hint} There are: {", ".join(known)}')
