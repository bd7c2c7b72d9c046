"""Read a LlamaFactory configuration file and validate its keys."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneline.config.llamafactory import keys
from tuneline.config.llamafactory.schema import LlamaFactoryConfig
from tuneline.config.parsing import foreign_config, located_yaml
from tuneline.config.parsing.located_yaml import Document, Problem, suggest
from tuneline.errors import RecipeError

Purpose = Literal["train", "predict", "export", "serve"]

FIX = "Correct the value, or remove the key to use LlamaFactory's default."


@dataclass(frozen=True)
class LlamaFactoryFile:
    """A LlamaFactory file: its content without null values, and the supported keys with their types."""

    document: Document
    content: dict[str, Any]
    config: LlamaFactoryConfig

    @property
    def purpose(self) -> Purpose:
        """Purpose of the file, determined like LlamaFactory's commands do."""
        if self.content.get("export_dir"):
            return "export"
        if self.config.do_train or (self.config.dataset and "infer_backend" not in self.content):
            return "train"
        return "predict" if self.content.get("do_predict") or self.content.get("do_eval") else "serve"

    def refuse(self, problems: list[Problem]) -> RecipeError:
        """Return an error with one line per problem, in file order."""
        ordered = sorted(problems, key=lambda problem: self.document.lines.get(problem[0], 0))
        return RecipeError("\n".join(self.document.format_errors(ordered)))


def read(path: Path) -> LlamaFactoryFile:
    """Read a LlamaFactory file. A key with value null counts as unset.

    Raises:
        RecipeError: A key is unknown to LlamaFactory, or has an invalid value. One line per key.
    """
    document = located_yaml.read(path, description=foreign_config.DESCRIPTION)
    content = {key: value for key, value in document.content.items() if value is not None}
    table = keys.table()
    known = table.all_keys()
    problems: list[Problem] = [((key,), _unknown_key(key, known)) for key in content if key not in known]
    supported = {key: value for key, value in content.items() if key in table.mapped}
    config, invalid = located_yaml.validate(LlamaFactoryConfig, supported, ())
    problems += [(key[:1], f"{text} {FIX}" if text.endswith(".") else text) for key, text in invalid]
    if problems:
        raise LlamaFactoryFile(document, content, LlamaFactoryConfig()).refuse(problems)
    return LlamaFactoryFile(document, content, config)


def _unknown_key(key: Any, known: list[str]) -> str:
    suggestion = suggest(key, known)
    if "Did you mean" in suggestion:
        return f"is not a key of LlamaFactory.{suggestion}"
    return "is not a key of LlamaFactory or of transformers' training arguments. Correct its spelling, or remove it."
