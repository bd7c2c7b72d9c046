"""Are the inputs of a step what they were when they were stored or resolved? Asked before they decide anything.

`check_fully` reads all bytes: before a training, a registration, a promotion, an export. `check` reads again only what
changed by size, times or inode, and costs next to nothing.
"""

from pathlib import Path

from tuneline import checksums
from tuneline.data.corpus import Corpus
from tuneline.errors import ArtifactError, SourceError
from tuneline.identity import FileEntry, Located, Manifest, file_entries
from tuneline.model.checkpoint import METADATA_FILE, NON_CONTENT_FILES, Checkpoint, compute_content_hash


def check_manifests(*manifests: Manifest) -> None:
    """Check that files are those that `resolve` found; a training may lie in between.

    Raises:
        SourceError: One is missing or was changed.
    """
    for manifest in manifests:
        _check_manifest(manifest, full=False)


def verify_hashes(*inputs: Corpus | Checkpoint | Manifest) -> None:
    """Read all bytes of artifacts and of the files that manifests name, and compare them with their hashes.

    Raises:
        ArtifactError: A stored artifact is damaged.
        SourceError: A model or data set is missing or was changed.
    """
    for each in inputs:
        match each:
            case Manifest():
                _check_manifest(each, full=True)
            case Corpus():
                if each.folder:
                    _check_stored(each, each.folder)
            case Checkpoint():
                _check_stored(each, each.path.parent if (each.path.parent / METADATA_FILE).is_file() else each.path)


def _check_stored(artifact: Corpus | Checkpoint, folder: Path) -> None:
    """Compare files with checksums, then values or files with the content hash."""
    step = ""
    try:
        sums = checksums.read(folder)
        step, expected = (sums.step, sums.content_hash) if sums else ("", "")
        checksums.check(folder, full=True)
        if isinstance(artifact, Corpus):
            found = artifact.content_hash() if expected else ""
        else:
            files = sums.below(artifact.path.name, NON_CONTENT_FILES) if sums else artifact.files()
            found = compute_content_hash(artifact.kind, artifact.identity, files)
            expected = artifact.sha256 or found
        if found != expected:
            raise ArtifactError(f"{folder} has the content hash {found}, expected {expected} as it was stored.")
    except ArtifactError as error:
        raise ArtifactError(f"{error} {checksums.recovery_advice(step)}") from error


def _check_manifest(manifest: Manifest, *, full: bool) -> None:
    for item in manifest.items:
        for file, now in zip(item.files, _current_entries(item, full=full), strict=True):
            if now != file:
                raise SourceError(
                    f"{Path(item.location) / file.name} has the sha256 {now.sha256}, expected {file.sha256} as it was "
                    "when this run began. Restore it, or run the recipe again on what is there now."
                )


def _current_entries(item: Located, *, full: bool) -> list[FileEntry]:
    for path in item.paths():
        if not path.is_file():
            raise SourceError(f"{path} is missing, and this run began with it. Restore it, or run the recipe again.")
    entries = {entry.name: entry for entry in file_entries(Path(item.location), item.paths(), full=full)}
    return [entries[file.name] for file in item.files]
