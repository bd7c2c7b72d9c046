"""Data set formats: each turns one record into messages. One small module and one registry entry a format."""

from tuneline.data.formats import alpaca, openai, sharegpt
from tuneline.data.formats.base import formats

__all__ = ["alpaca", "formats", "openai", "sharegpt"]
