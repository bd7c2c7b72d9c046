"""Every error this project raises on purpose.

TunelineError
├── RecipeError      the recipe asks for something that cannot be done        (fix the YAML)
├── DataError        a row does not have the shape its format promises        (fix the data)
├── NotFoundError    a name is in no registry                                 (fix the name)
├── SourceError      a model or data set is missing, or has other bytes       (fix the place)
├── ProofError       a check of our own failed: masks, packing, merge         (the result is not trustworthy)
├── ArtifactError    a stored artifact is gone or has other bytes               (restore it or compute it again)
├── DiskFullError    a disk is full                                            (free some space)
├── StoppedError     a training was told to stop                              (give the same command again)
├── DeliveryError    an export cannot go where it should: a folder, a hub     (fix the place or the login)
└── TrackingError    MLflow, the registry or a registered model is unusable   (fix the stack)
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TunelineError(Exception):
    """Base of all errors raised by this project; catch it to catch them all."""

    exit_code = 2
    """Of a command that it ends."""


class RecipeError(TunelineError, ValueError):
    """The recipe asks for a combination that cannot be trained."""


class DataError(TunelineError, ValueError):
    """A row does not have the shape that its declared format promises.

    `reason` names the kind of fault without any value of the row, so that faults can be counted.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class SourceError(TunelineError, OSError):
    """A model or a data set is not where the recipe says, or its bytes are not those expected."""


class VerificationError(TunelineError, RuntimeError):
    """A proof obligation does not hold, so the result must not be used."""


class ArtifactError(TunelineError, OSError):
    """A stored artifact is missing, or its bytes are not those that were stored."""


class DiskFullError(TunelineError, OSError):
    """A disk has no space left for what must be written."""


class StoppedError(TunelineError, RuntimeError):
    """A training was told to stop; what it had learned is kept, and the same command goes on.

    `by` names the signal that asked; Ctrl-C is SIGINT, and ends a command with 130.
    """

    def __init__(self, message: str, by: str = "") -> None:
        super().__init__(message)
        if by == "SIGINT":
            self.exit_code = 130


class DeliveryError(TunelineError, OSError):
    """An export cannot be laid into its folder, or a hub does not take it."""


class TrackingError(TunelineError, RuntimeError):
    """The tracking server, the model registry or a registered model cannot be used."""


class NotFoundError(TunelineError, LookupError):
    """A name was looked up in a registry that does not hold it."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> "NotFoundError":
        """Say what was asked for, what is nearest, and everything that exists."""
        known = sorted(known)
        return cls(f"Unknown {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known) or 'none'}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` where a known name is near, or an empty string."""
    nearest = get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def one_line(error: BaseException) -> str:
    """Return another library's message as one line that ends like a sentence."""
    return f"{' '.join(str(error).split()).rstrip('.')}."
