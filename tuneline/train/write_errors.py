"""Exceptions of failed tensor writes: torch and safetensors each raise their own types."""

from safetensors import SafetensorError

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""Exceptions that writing tensors raises; `storage_errors.is_full` distinguishes a full disk from other failures."""
