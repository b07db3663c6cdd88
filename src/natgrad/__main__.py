"""The ``natgrad`` command; the lab behind it is an extra."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what to install."""
    try:
        from natgrad.lab.cli import app
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("natgrad"):
            raise
        sys.exit(f'natgrad: the command line needs "{missing.name}": pip install "natgrad[lab]"')
    app()


if __name__ == "__main__":
    main()
