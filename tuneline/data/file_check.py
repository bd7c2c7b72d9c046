"""Files are unchanged since they were resolved: compared by size and hash."""

from pathlib import Path

from tuneline.errors import SourceError
from tuneline.identity import Located, file_entries


def check_unchanged(found: Located) -> None:
    """Check that the files are still those that the manifest speaks of.

    Raises:
        SourceError: One is gone or has changed.
    """
    for path in found.paths():
        if not path.is_file():
            raise SourceError(f"{found.name}: {path} is gone since it was resolved. Restore it, or run again.")
    now = {file.name: file for file in file_entries(Path(found.location), found.paths())}
    changed = [file.name for file in found.files if now[file.name] != file]
    if changed:
        raise SourceError(f"{found.name}: {changed[0]} changed while the run was going on. Run again on the new bytes.")
