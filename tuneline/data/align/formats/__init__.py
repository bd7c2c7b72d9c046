"""Data set formats: each reads one record into what it says. One small module and one registry entry a format."""

from tuneline.data.align.formats import alpaca, kto, openai, preference, sharegpt, standard, text
from tuneline.data.align.formats.base import formats

__all__ = ["alpaca", "formats", "kto", "openai", "preference", "sharegpt", "standard", "text"]
