"""The entry point of the command, which works without the ``cli`` extra too."""

from __future__ import annotations

import sys

NO_EXTRA = (
    "async-refunds: the command line needs typer, which the extra `cli` installs: "
    f"{sys.executable} -m pip install typer"
)


def main() -> None:
    """Run the command line, or say how to install it (exit code 2)."""
    # Lazy, because Ctrl-C may come at any moment of the imports, which take the most
    # part of a short command's time; and because the extra may be missing.
    from .cli import interruption  # noqa: PLC0415

    interruption.end_at_once()
    try:
        from .cli.app import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.stderr.write(f"{NO_EXTRA}\n")
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
