"""The entry point of the command, which works without the ``cli`` extra too."""

from __future__ import annotations

import sys

NO_EXTRA = (
    "async-refunds: the command line needs typer, which the extra `cli` installs: "
    f"{sys.executable} -m pip install typer"
)


def main() -> None:
    """Run the command line, or say how to install it (exit code 2)."""
    try:
        from .cli.app import app  # noqa: PLC0415 - lazy: the extra may be missing
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.stderr.write(f"{NO_EXTRA}\n")
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
