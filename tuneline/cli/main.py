"""How `tuneline` starts and ends; the commands are imported once a signal ends with one line."""

import sys

from tuneline import signals


def main() -> None:
    """Run the command; a mistake of the user's, SIGTERM and Ctrl-C end with one line alone."""
    sys.exit(signals.run_command(_command))


def _command() -> None:
    from tuneline.cli.app import app
    from tuneline.storage_errors import translated

    with translated():
        app()


if __name__ == "__main__":
    main()
