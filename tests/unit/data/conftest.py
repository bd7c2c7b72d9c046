"""Fixtures of the data tests: prepare training rows from files and a recipe, or return the error."""

import pytest

from tests import tiny
from tuneline.config import load
from tuneline.data import prepare as prepare_module
from tuneline.errors import TunelineError
from tuneline.model import source as models


@pytest.fixture
def prepare(tmp_path, tiny_model):
    """Write data files and a recipe, prepare the training rows, and return their counts."""

    def run(files, source=None, **recipe):
        for name, content in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        first = {"name": "d", "path": f"data/{next(iter(files))}", **(source or {})}
        small = {"sources": [first], "exams": [], "merge": {"validation_fraction": 0.2}}
        path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(**(small | recipe)))
        return prepare_module.prepare(load.load(path).recipe, models.tokenizer_manifest(tiny_model)).counts

    return run


@pytest.fixture
def error_of(prepare, tmp_path):
    """Return the type and the message of the error that bad input raises; the temporary folder is written as HERE."""

    def run(*args, **recipe):
        with pytest.raises(TunelineError) as caught:
            prepare(*args, **recipe)
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith((".", "?"))
        return type(caught.value), message.replace(str(tmp_path), "HERE")

    return run
