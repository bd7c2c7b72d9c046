"""Fixture of the reader tests: write a file."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a file in a temporary folder and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
