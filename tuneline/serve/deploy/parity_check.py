"""Compare the prompts of a version with its training rows before it is served."""

from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.deploy.located import LocatedModel


def verify(version: ServedVersion, located: LocatedModel) -> str:
    """Compare the prompts of the server with the training rows of a registered version.

    Returns:
        The result in one sentence.

    Raises:
        VerificationError: They differ.
    """
    from tuneline.serve import parity

    rows = parity.stored_rows(located.version) if located.version else None
    return parity.verify_template(version.tokenizer, rows).sentence
