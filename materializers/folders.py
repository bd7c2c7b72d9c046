"""What directory artifacts share: on a local store the files are written and read in place; elsewhere they travel."""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from zenml.materializers.base_materializer import BaseMaterializer
from zenml.utils import io_utils


class FolderMaterializer(BaseMaterializer):
    """Base of materializers whose artifact is a directory."""

    SKIP_REGISTRATION = True

    @property
    def is_local(self) -> bool:
        """Whether the artifact store is a plain directory of this machine."""
        return bool(self.artifact_store.config.is_local)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the folder to write into; on a remote store it is uploaded afterwards."""
        if self.is_local:
            yield Path(self.uri)
            return
        with self.get_temporary_directory(delete_at_exit=True) as scratch:
            yield Path(scratch)
            io_utils.copy_dir(scratch, self.uri, overwrite=True)

    def reading(self) -> Path:
        """Return the folder to read from; of a remote store, a copy."""
        if self.is_local:
            return Path(self.uri)
        with self.get_temporary_directory(delete_at_exit=False) as scratch:
            io_utils.copy_dir(self.uri, scratch, overwrite=True)
            return Path(scratch)

    def keep_text(self, name: str, text: str) -> str:
        """Write a text beside the artifact and return its address."""
        address = f"{self.uri.rstrip('/')}/{name}"
        with self.artifact_store.open(address, "w") as file:
            file.write(text)
        return address


def table_html(title: str, rows: list[dict[str, Any]]) -> str:
    """Write rows as a small page."""
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row[name])[:600])}</td>" for name in names) + "</tr>" for row in rows
    )
    style = "body{font:14px system-ui;margin:2em}td,th{border:1px solid #ccc;padding:4px 8px;vertical-align:top}"
    return (
        "<!doctype html><meta "
        f"charset=utf-8><title>{escape(title)}</title><style>{style}table{{border-collapse:collapse}}"
        f"</style><h1>{escape(title)}</h1><table><tr>{head}</tr>{body}</table>"
    )
