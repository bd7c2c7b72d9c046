"""Dataset formats: each module converts a record of one format to the content of an example and registers itself."""

from tuneline.data.align.formats import alpaca, kto, openai, preference, sharegpt, standard, text
from tuneline.data.align.formats.base import formats

__all__ = ["alpaca", "formats", "kto", "openai", "preference", "sharegpt", "standard", "text"]
