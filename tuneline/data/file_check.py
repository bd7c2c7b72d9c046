"""Check that files are unchanged since they were located: compared by size and hash."""

from pathlib import Path

from tuneline.errors import SourceError
from tuneline.identity import Located, file_entries


def check_unchanged(located: Located) -> None:
    """Check that the files are still those of the manifest.

    Raises:
        SourceError: A file is missing or has changed.
    """
    for path in located.paths():
        if not path.is_file():
            raise SourceError(
                f"{located.name}: {path} was removed after it had been located. Restore it, or start the run again."
            )
    current = {file.name: file for file in file_entries(Path(located.location), located.paths())}
    changed = [file.name for file in located.files if current[file.name] != file]
    if changed:
        raise SourceError(
            f"{located.name}: {changed[0]} changed during the run. Start the run again to use the new content."
        )
