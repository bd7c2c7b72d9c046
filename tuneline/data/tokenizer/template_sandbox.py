"""Template sandbox: chat templates that loop or produce output without bound are refused while they render.

transformers renders templates in Jinja's sandbox, which isolates them from the machine but does not limit loops or
sizes. This module keeps that environment and counts everything that can grow: loop iterations and macro calls, the
size of values that are assigned to variables or passed to calls, operations that multiply sizes, and the output.
Expressions without variables are limited by the length of the template. The counts are the same on every machine; a
time limit is checked in addition, at each iteration.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache, wraps
from threading import local
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from tuneline import limits
from tuneline.errors import SourceError
from tuneline.limits import Limit

COUNT_FILTER, STEP_FILTER, VALUE_FILTER = "tuneline_count", "tuneline_tick", "tuneline_bind"
MAX_INTEGER_BITS = 1 << 14
"""Maximum size of an integer in bits; templates only count turns."""

MAX_FORMAT_WIDTH = 10_000
"""Maximum number that a format or a filter accepts as a width or a count."""

_NUMBERS = re.compile(r"\d{5,}|\*")
_SEQUENCES = (str, list, tuple)


class TemplateLimitError(SourceError):
    """A chat template exceeded a limit."""

    @classmethod
    def for_limit(cls, limit: Limit, unit: str) -> "TemplateLimitError":
        """Build the error for a limit."""
        return cls(
            f"the chat template takes more than {limit.value():,} {unit} for one conversation. Use another "
            f"template, or fix this one. {limit.advice()}"
        )


class _Budget:
    """The remaining steps, characters and time of one rendering."""

    def __init__(self) -> None:
        self.steps = limits.TEMPLATE_STEPS.value()
        self.max_characters = limits.TEMPLATE_CHARACTERS.value()
        self._deadline = time.monotonic() + limits.TEMPLATE_SECONDS.value()
        self._sizes: dict[int, tuple[int, object]] = {}
        """Total size of a list or mapping by its id; the object is kept, so that its id is not reused."""

    def count_step(self) -> None:
        """Count a step, and check the time limit."""
        self.steps -= 1
        if self.steps < 0:
            raise TemplateLimitError.for_limit(limits.TEMPLATE_STEPS, "steps")
        if time.monotonic() > self._deadline:
            raise TemplateLimitError.for_limit(limits.TEMPLATE_SECONDS, "seconds")

    def check_size(self, num_characters: int) -> None:
        """Check a number of characters against the limit."""
        if num_characters > self.max_characters:
            raise TemplateLimitError.for_limit(limits.TEMPLATE_CHARACTERS, "characters")

    def check_value(self, value: object) -> None:
        """Check a value that is assigned to a variable."""
        value_type = type(value)
        if value_type is str:
            self.check_size(len(value))  # type: ignore[arg-type]
        elif value_type in (list, tuple, dict):
            self.check_size(self._size(value))
        elif value_type is int and value.bit_length() > MAX_INTEGER_BITS:  # type: ignore[attr-defined]
            raise TemplateLimitError.for_limit(limits.TEMPLATE_CHARACTERS, "digits")

    def _size(self, value: Any) -> int:
        """Return the approximate size of a value as text; values are not modified in place, so sizes are cached."""
        if isinstance(value, str):
            return len(value) + 1
        if not isinstance(value, list | tuple | dict):
            return 1
        if (cached := self._sizes.get(id(value))) is None:
            items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            cached = self._sizes[id(value)] = (1 + sum(map(self._size, items)), value)
        return cached[0]


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget per rendering."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._local = local()
        self.template_class = LimitedTemplate

    @property
    def budget(self) -> _Budget:
        """The budget of the current rendering; one per thread."""
        return self._local.budget  # type: ignore[no-any-return]

    def start_rendering(self) -> None:
        """Start a rendering with a full budget."""
        self._local.budget = _Budget()

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """Concatenate the output of the template or of a macro."""
        budget, total, output = self.budget, 0, []
        for part in parts:
            total += len(part)
            if total > budget.max_characters:
                budget.check_size(total)
            output.append(part)
        return "".join(output)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator that may multiply sizes."""
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            num_bits = left.bit_length() * abs(right)
            self.budget.check_size(num_bits * (self.budget.max_characters // MAX_INTEGER_BITS))
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, _SEQUENCES) and isinstance(count, int):
                    self.budget.check_size(len(sequence) * count)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call an object after checking the size of its arguments, and of the result of string methods."""
        budget = self.budget
        if isinstance(obj, Macro):
            for value in (*args, *kwargs.values()):
                budget.check_value(value)
        elif type(obj) is BuiltinMethodType and (check := _GROWING_METHODS.get(obj.__name__)):
            check(budget, obj.__self__, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Check the widths of `str.format`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        format_text: Callable[..., str] = wrapped

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(str(value.__self__), (args, kwargs))
            return format_text(*args, **kwargs)

        return checked


class LimitedTemplate(jinja2.Template):
    """A template whose renderings are limited by a budget."""

    environment: LimitedEnvironment

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template; exceeding a limit is an error."""
        self.environment.start_rendering()
        return super().render(*args, **kwargs)


def _check_format(text: str, values: Any) -> None:
    """Refuse large widths, in the format or in its arguments."""
    if _NUMBERS.search(text) or ("{" in text.partition("{")[2] and _contains_large_number(values)):
        raise TemplateLimitError.for_limit(limits.TEMPLATE_CHARACTERS, "characters (by the width of a formatted text)")


def _contains_large_number(values: Any) -> bool:
    if isinstance(values, dict | list | tuple):
        return any(map(_contains_large_number, values.values() if isinstance(values, dict) else values))
    return isinstance(values, int) and abs(values) > MAX_FORMAT_WIDTH


def _check_replace(budget: _Budget, text: str, old: str = "", new: str = "", *_: Any, **__: Any) -> None:
    if (len(text) + 1) * len(new) > budget.max_characters:  # counting is slow and rarely needed
        budget.check_size(len(text) + text.count(old) * len(new))


def _check_padding(budget: _Budget, text: Any, width: Any = 0, *_: Any, **kwargs: Any) -> None:
    budget.check_size(max(0, *(value for value in (width, *kwargs.values()) if isinstance(value, int))))


def _check_expandtabs(budget: _Budget, text: str, width: Any = 8, *_: Any, **kwargs: Any) -> None:
    largest = max([value for value in (width, *kwargs.values()) if isinstance(value, int)], default=8)
    budget.check_size(len(text) + max(0, largest) * max(text.count("\t"), text.count("\n") + 1))


def _check_join(budget: _Budget, separator: str, parts: Any = (), *_: Any, **__: Any) -> None:
    if isinstance(parts, list | tuple):
        budget.check_size(sum(len(part) for part in parts if isinstance(part, str)) + len(separator) * len(parts))


def _check_translate(budget: _Budget, text: str, table: Any = (), *_: Any, **__: Any) -> None:
    values = table.values() if isinstance(table, dict) else table
    longest = max((len(value) for value in values if isinstance(value, str)), default=1)
    budget.check_size(len(text) * longest)


_GROWING_METHODS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "center": _check_padding,
    "ljust": _check_padding,
    "rjust": _check_padding,
    "zfill": _check_padding,
    "expandtabs": _check_expandtabs,
    "join": _check_join,
    "translate": _check_translate,
}
"""String methods whose result may be far longer than the string and the arguments."""


_AGGREGATING_FILTERS = ("join", "sum")
"""Filters that combine many values into one; all values are checked first."""


def _check_filter(budget: _Budget, name: str, value: Any, arguments: list[Any]) -> None:
    """Check the arguments of a filter, and the size of its result, before it is applied."""
    numbers = [abs(argument) for argument in arguments if isinstance(argument, int)]
    if name == "replace" and isinstance(value, str):
        _check_replace(budget, value, *map(str, arguments[:2]))
    elif name == "join":
        _check_join(budget, str(arguments[0]) if arguments else "", value)
    elif name == "format" and isinstance(value, str):
        _check_format(value, arguments)
    elif name == "indent" and isinstance(value, str):
        widths = [len(argument) for argument in arguments if isinstance(argument, str)]
        budget.check_size(len(value) + (value.count("\n") + 1) * max([*numbers, *widths], default=4))
    elif name == "sum" and isinstance(value, list | tuple):
        budget.check_size(sum(len(item) for item in value if isinstance(item, list | tuple)) * (len(value) + 1))
    elif (
        name not in ("int", "float", "default", "d", "abs", "string", "truncate")
        and max(numbers, default=0) > MAX_FORMAT_WIDTH
    ):
        raise TemplateLimitError.for_limit(
            limits.TEMPLATE_CHARACTERS, f"characters (by an argument of the filter {name})"
        )


def _checked_filter(environment: LimitedEnvironment, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks its value and its arguments before it is applied."""
    num_passed = 1 if hasattr(apply, "jinja_pass_arg") else 0  # Jinja passes a context or environment first

    @wraps(apply)
    def checked(*args: Any, **kwargs: Any) -> Any:
        budget = environment.budget
        if name in _AGGREGATING_FILTERS and len(args) > num_passed and not isinstance(args[num_passed], str):
            args = (*args[:num_passed], list(args[num_passed]), *args[num_passed + 1 :])
        value = args[num_passed] if len(args) > num_passed else None
        arguments = [*args[num_passed + 1 :], *kwargs.values()]
        if type(value) in (list, tuple, dict):
            budget.check_value(value)
        if arguments:
            _check_filter(budget, name, value, arguments)
        return apply(*args, **kwargs)

    return checked


@jinja2.pass_context
def _count(context: Context, values: Any) -> Iterator[Any]:
    """Yield the values of a loop, and count a step for each."""
    count_step = context.environment.budget.count_step  # type: ignore[attr-defined]
    for value in values:
        count_step()
        yield value


@jinja2.pass_context
def _step(context: Context, value: Any) -> Any:
    """Count a step of a macro or of a recursive loop."""
    context.environment.budget.count_step()  # type: ignore[attr-defined]
    return value


@jinja2.pass_context
def _check_value(context: Context, value: Any) -> Any:
    """Check a value that is assigned to a variable."""
    if not isinstance(value, Undefined):
        context.environment.budget.check_value(value)  # type: ignore[attr-defined]
    return value


def _filter(node: nodes.Expr | None, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def instrument(tree: nodes.Template) -> None:
    """Add the checks to a syntax tree: to each loop, each macro and each assignment."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filter(loop.iter, COUNT_FILTER, loop.lineno)
        if loop.recursive:
            loop.body.insert(0, _step_statement(loop.lineno))
    blocks: list[nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
    for block in blocks:
        block.body.insert(0, _step_statement(block.lineno))
    for assignment in list(tree.find_all(nodes.Assign)):
        assignment.node = _filter(assignment.node, VALUE_FILTER, assignment.lineno)
    for assigned_block in list(tree.find_all(nodes.AssignBlock)):
        assigned_block.filter = _filter(assigned_block.filter, VALUE_FILTER, assigned_block.lineno)


def _step_statement(line: int) -> nodes.Stmt:
    return nodes.ExprStmt(_filter(nodes.Const(None, lineno=line), STEP_FILTER, line), lineno=line)


def _environment() -> LimitedEnvironment:
    """Return an environment with the globals, filters and extensions of transformers' environment, and the checks."""
    original = _compile_unlimited("").environment
    limited = LimitedEnvironment(
        trim_blocks=original.trim_blocks,
        lstrip_blocks=original.lstrip_blocks,
        extensions=[type(extension) for extension in original.extensions.values()],
    )
    limited.globals.update({name: value for name, value in original.globals.items() if name not in limited.globals})
    limited.globals.update({name: original.globals[name] for name in ("dict", "namespace") if name in original.globals})
    limited.globals.pop("lipsum", None)  # generates any number of random words
    limited.filters.update({name: _checked_filter(limited, name, apply) for name, apply in original.filters.items()})
    limited.filters.update({COUNT_FILTER: _count, STEP_FILTER: _step, VALUE_FILTER: _check_value})
    return limited


@lru_cache(maxsize=128)
def compile_template(chat_template: str) -> jinja2.Template:
    """Compile a chat template as transformers does, but with limits."""
    environment = _environment()
    tree = environment.parse(chat_template)
    instrument(tree)
    tree.set_environment(environment)
    return environment.from_string(tree)


_compile_unlimited: Callable[[str], jinja2.Template] = chat_template_utils._compile_jinja_template


@cache
def install() -> None:
    """Make all tokenizers render with limits; `apply_chat_template` does not accept an environment."""
    chat_template_utils._compile_jinja_template = compile_template
