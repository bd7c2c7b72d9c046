"""Read a configuration file of LlamaFactory: is it one, what does it ask for, and which of its keys are wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneline.config.llamafactory import keys
from tuneline.config.llamafactory.schema import LlamaFactoryConfig
from tuneline.config.parsing import foreign_config, located_yaml
from tuneline.config.parsing.located_yaml import Document, Key, Problem, suggest
from tuneline.errors import RecipeError

Purpose = Literal["train", "predict", "export", "serve"]


@dataclass(frozen=True)
class LlamaFactoryFile:
    """A file of LlamaFactory: what is written in it (null left out), and the keys that are taken, with their types."""

    document: Document
    content: dict[str, Any]
    written: LlamaFactoryConfig

    @property
    def purpose(self) -> Purpose:
        """What the file is for, as LlamaFactory's commands read it."""
        if self.content.get("export_dir"):
            return "export"
        if self.written.do_train or (self.written.dataset and "infer_backend" not in self.content):
            return "train"
        return "predict" if self.content.get("do_predict") or self.content.get("do_eval") else "serve"

    def refuse(self, problems: list[Problem]) -> RecipeError:
        """Make the error that names each problem with its line, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self.document.lines.get(problem[0], 0))
        return RecipeError("\n".join(self.document.tell(ordered)))


def read(path: Path) -> LlamaFactoryFile:
    """Read a file; a key that is null is unset.

    Raises:
        RecipeError: One line for each key that LlamaFactory does not know, or whose value it could not use.
    """
    document = located_yaml.read(path, what=foreign_config.DESCRIPTION)
    content = {key: value for key, value in document.content.items() if value is not None}
    found = keys.table()
    known = found.known()
    problems: list[Problem] = [
        ((key,), f"is no key of LlamaFactory.{suggest(key, known)}" if _is_near(key, known) else _unknown())
        for key in content
        if key not in known
    ]
    taken = {key: value for key, value in content.items() if key in found.taken}
    written, wrong = located_yaml.validate(LlamaFactoryConfig, taken, ())
    problems += [(_top(key), f"{text} {_correct()}" if text.endswith(".") else text) for key, text in wrong]
    if problems:
        raise LlamaFactoryFile(document, content, LlamaFactoryConfig()).refuse(problems)
    return LlamaFactoryFile(document, content, written)


def _is_near(key: Any, known: list[str]) -> bool:
    return "Did you mean" in suggest(key, known)


def _unknown() -> str:
    return "is no key of LlamaFactory or of transformers' training arguments. Correct its spelling, or remove it."


def _correct() -> str:
    return "Correct the value, or remove the key to take LlamaFactory's own."


def _top(key: Key) -> Key:
    return key[:1]
