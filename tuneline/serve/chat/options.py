"""Generation parameters of a chat, by the names of the OpenAI API: types and ranges.

A parameter that is not set has the value of the server, or of the generation config of the model.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from tuneline.config.base import MAX_SEED, MAX_TOKENS
from tuneline.errors import NotFoundError, RecipeError
from tuneline.serve.engines.interface import Sampling

DEFAULTS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
"""Parameters of a new session, unless the generation config of the model sets some. Without them, many small models
ramble: the default of the API is a temperature of 1."""

TEMPLATE_PREFIX = "template."
"""Prefix of variables of the chat template, such as `template.enable_thinking`."""


@dataclass(frozen=True)
class _Number:
    """A number with its range; an integer if `whole`."""

    low: float
    high: float
    whole: bool = False

    def describe(self) -> str:
        kind = "an integer" if self.whole else "a number"
        return f"{kind} of at least {self.low:g}" if self.high == inf else f"{kind} from {self.low:g} to {self.high:g}"


_NUMBERS = {
    "temperature": _Number(0, 100),
    "top_p": _Number(0, 1),
    "top_k": _Number(0, MAX_TOKENS, whole=True),
    "min_p": _Number(0, 1),
    "presence_penalty": _Number(-2, 2),
    "frequency_penalty": _Number(-2, 2),
    "repetition_penalty": _Number(0.01, 100),
    "max_tokens": _Number(1, MAX_TOKENS, whole=True),
    "seed": _Number(0, MAX_SEED, whole=True),
}
NAMES = (*_NUMBERS, "stop")
_SAMPLING = tuple(name for name in _NUMBERS if name != "max_tokens")


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `name=value` assignments; an empty value resets a parameter and is returned as None.

    `stop` takes a text, or a JSON list of texts. `template.NAME` sets a variable of the chat template.

    Raises:
        NotFoundError: The parameter does not exist.
        RecipeError: The value is missing, or is not in range.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in NAMES and not name.startswith(TEMPLATE_PREFIX):
            raise NotFoundError.among("parameter", name, [*NAMES, f"{TEMPLATE_PREFIX}NAME"])
        if not equals:
            raise RecipeError(f"{name}: expected {name}=VALUE, found no value. An empty value resets the parameter.")
        parsed[name] = _parse_value(name, text) if text else None
    return parsed


def _parse_value(name: str, text: str) -> Any:
    if name == "stop":
        return _parse_stop(text)
    if name.startswith(TEMPLATE_PREFIX):
        return _json_or_text(text)
    number = _NUMBERS[name]
    value: Any = _json_or_text(text)
    is_number = isinstance(value, int if number.whole else int | float) and not isinstance(value, bool)
    if not is_number or not number.low <= value <= number.high:
        raise RecipeError(f"{name}: expected {number.describe()}, found {text!r}. Correct the value.")
    return value


def _parse_stop(text: str) -> list[str]:
    value = _json_or_text(text)
    texts = value if isinstance(value, list) else [value if isinstance(value, str) else text]
    if not texts or not all(isinstance(each, str) and each for each in texts):
        raise RecipeError(f"stop: expected a text or a JSON list of texts, found {text!r}. Correct the value.")
    return texts


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def update(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with changes; a change to None removes a parameter."""
    return {name: value for name, value in {**options, **changes}.items() if value is not None}


def describe(options: Mapping[str, Any]) -> str:
    """Return options as text, `name=value` each."""
    assignments = [f"{name}={_as_text(value)}" for name, value in options.items()]
    return " ".join(assignments) or "those of the model or the server"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sampling(options: Mapping[str, Any]) -> Sampling:
    """Return the sampling parameters for an engine."""
    return Sampling(**{name: options[name] for name in _SAMPLING if name in options})


def template_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the chat template."""
    return {
        name.removeprefix(TEMPLATE_PREFIX): value for name, value in options.items() if name.startswith(TEMPLATE_PREFIX)
    }


def as_request(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request to an OpenAI-compatible server."""
    fields = {name: value for name, value in options.items() if not name.startswith(TEMPLATE_PREFIX)}
    arguments = template_arguments(options)
    return {**fields, **({"chat_template_kwargs": arguments} if arguments else {})}
