"""Entry point of `tuneline`: exit codes, and one line for each error and signal."""

import sys

from tuneline import signals


def main() -> None:
    """Run the command; an error in the input, SIGTERM and Ctrl-C end with one line."""
    sys.exit(signals.run_command(_command))


def _command() -> None:
    from tuneline.cli.app import app
    from tuneline.storage_errors import translated

    with translated():
        app()


if __name__ == "__main__":
    main()
