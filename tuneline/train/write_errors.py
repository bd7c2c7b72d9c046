"""What writing tensors raises: torch and safetensors report a failed write each by an error of its own."""

from safetensors import SafetensorError

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What writing tensors raises; `storage_errors.is_full` tells a full disk from other failures."""
