"""Verify that the inputs of a step have not changed since they were stored or resolved.

`verify_hashes` reads all bytes: before a training, a registration, a promotion or an export. `check_manifests` is
cheap: it reads only files whose size, times or inode changed.
"""

from pathlib import Path

from tuneline import checksums
from tuneline.data.corpus import Corpus
from tuneline.errors import ArtifactError, SourceError
from tuneline.identity import FileEntry, Located, Manifest, file_entries
from tuneline.model.checkpoint import METADATA_FILE, NON_CONTENT_FILES, Checkpoint, compute_content_hash


def check_manifests(*manifests: Manifest) -> None:
    """Check that the files of manifests have not changed since `resolve`, for example during a training.

    Raises:
        SourceError: A file is missing or changed.
    """
    for manifest in manifests:
        _check_manifest(manifest, full=False)


def verify_hashes(*inputs: Corpus | Checkpoint | Manifest) -> None:
    """Read all bytes of artifacts and of the files of manifests, and compare them with their hashes.

    Raises:
        ArtifactError: A stored artifact is damaged.
        SourceError: A model or dataset is missing or changed.
    """
    for item in inputs:
        match item:
            case Manifest():
                _check_manifest(item, full=True)
            case Corpus():
                if item.folder:
                    _check_stored(item, item.folder)
            case Checkpoint():
                _check_stored(item, item.path.parent if (item.path.parent / METADATA_FILE).is_file() else item.path)


def _check_stored(artifact: Corpus | Checkpoint, folder: Path) -> None:
    """Compare files with their checksums, then the content with its hash."""
    step = ""
    try:
        sums = checksums.read(folder)
        step, expected = (sums.step, sums.content_hash) if sums else ("", "")
        checksums.check(folder, full=True)
        if isinstance(artifact, Corpus):
            actual = artifact.content_hash() if expected else ""
        else:
            files = sums.below(artifact.path.name, NON_CONTENT_FILES) if sums else artifact.files()
            actual = compute_content_hash(artifact.kind, artifact.identity, files)
            expected = artifact.sha256 or actual
        if actual != expected:
            raise ArtifactError(f"{folder} has the content hash {actual}, expected {expected} as stored.")
    except ArtifactError as error:
        raise ArtifactError(f"{error} {checksums.recovery_advice(step)}") from error


def _check_manifest(manifest: Manifest, *, full: bool) -> None:
    for item in manifest.items:
        for file, current in zip(item.files, _current_entries(item, full=full), strict=True):
            if current != file:
                raise SourceError(
                    f"{Path(item.location) / file.name} has the sha256 {current.sha256}, expected {file.sha256}, "
                    "its hash at the start of this run. Restore it, or run the recipe again with the current file."
                )


def _current_entries(item: Located, *, full: bool) -> list[FileEntry]:
    for path in item.paths():
        if not path.is_file():
            raise SourceError(
                f"{path} is missing; it existed at the start of this run. Restore it, or run the recipe again."
            )
    entries = {entry.name: entry for entry in file_entries(Path(item.location), item.paths(), full=full)}
    return [entries[file.name] for file in item.files]
