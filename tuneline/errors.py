"""Errors that Tuneline raises on purpose.

TunelineError
├── RecipeError        the recipe asks for something that cannot be done          (fix the YAML)
├── DataError          a row does not have the structure of its format            (fix the data)
├── NotFoundError      a name is not in its registry                              (fix the name)
├── SourceError        a model or dataset is missing or changed                   (fix the path)
├── VerificationError  a check failed: loss masks, packing, merge                 (the result must not be used)
├── ArtifactError      a stored artifact is missing or changed                    (restore it or compute it again)
├── DiskFullError      a disk is full                                             (free some space)
├── StoppedError       a signal stopped a training                                (run the same command again)
├── DeliveryError      an export cannot be delivered to its folder or the Hub     (fix the path or the login)
└── TrackingError      MLflow, the registry or a registered model is unusable     (fix the stack)
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TunelineError(Exception):
    """Base class of all errors that Tuneline raises on purpose."""

    exit_code = 2
    """Exit code of a command that ends with this error."""


class RecipeError(TunelineError, ValueError):
    """The recipe asks for a combination that cannot be trained."""


class DataError(TunelineError, ValueError):
    """A row does not have the structure of its declared format.

    `reason` is the kind of the error without values of the row, so that errors can be counted.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class SourceError(TunelineError, OSError):
    """A model or a dataset is missing, or its files differ from those expected."""


class VerificationError(TunelineError, RuntimeError):
    """A check of the result failed, so it must not be used."""


class ArtifactError(TunelineError, OSError):
    """A stored artifact is missing, or its files changed."""


class DiskFullError(TunelineError, OSError):
    """A disk is full."""


class StoppedError(TunelineError, RuntimeError):
    """A signal stopped a training; its state is saved, and the same command resumes it.

    `by` is the name of the signal. Ctrl-C is SIGINT and ends a command with exit code 130.
    """

    def __init__(self, message: str, by: str = "") -> None:
        super().__init__(message)
        if by == "SIGINT":
            self.exit_code = 130


class DeliveryError(TunelineError, OSError):
    """An export cannot be copied to its folder, or the Hub rejects it."""


class TrackingError(TunelineError, RuntimeError):
    """The tracking server, the model registry or a registered model cannot be used."""


class NotFoundError(TunelineError, LookupError):
    """A name is not in its registry."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> "NotFoundError":
        """Return the error for a name, with the nearest known name and all known names."""
        known = sorted(known)
        return cls(f"Unknown {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known) or 'none'}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` if a known name is similar, or an empty string."""
    nearest = get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line that ends with a period."""
    return f"{' '.join(str(error).split()).rstrip('.')}."
