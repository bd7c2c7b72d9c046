"""Chat templates with limits: one that loops without end, or writes without end, is refused while it renders.

transformers renders templates in Jinja's sandbox, which keeps them from the machine and lets them loop and multiply as
they like. Here its environment is kept, and what can grow is counted: rounds of loops and calls of macros, the size of
what is bound to a variable or handed to a call, operations that multiply, and all that is written. What holds no
variable is as long as the template, so nothing else can grow. The counts are the same on every machine; a clock stands
behind them, looked at in each round.
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
"""Bits of a whole number; a template counts turns."""

MAX_FORMAT_WIDTH = 10_000
"""Largest number that a formatted text or a filter takes as a width or a count."""

_NUMBERS = re.compile(r"\d{5,}|\*")
_JOINS = (str, list, tuple)


class TemplateLimitError(SourceError):
    """A chat template went beyond a limit."""

    @classmethod
    def of(cls, limit: Limit, unit: str) -> "TemplateLimitError":
        """Say which limit."""
        return cls(
            f"the chat template takes more than {limit.value():,} {unit} for one conversation. Set template to "
            f"another one, or correct this one. {limit.advice()}"
        )


class _Budget:
    """What one rendering may still take."""

    def __init__(self) -> None:
        self.steps = limits.TEMPLATE_STEPS.value()
        self.longest = limits.TEMPLATE_CHARACTERS.value()
        self._ends = time.monotonic() + limits.TEMPLATE_SECONDS.value()
        self._weights: dict[int, tuple[int, object]] = {}
        """Id of a list or a mapping -> its size, all that it holds written out; kept, so that no id comes again."""

    def tick(self) -> None:
        """Take a step."""
        self.steps -= 1
        if self.steps < 0:
            raise TemplateLimitError.of(limits.TEMPLATE_STEPS, "steps")
        if time.monotonic() > self._ends:
            raise TemplateLimitError.of(limits.TEMPLATE_SECONDS, "seconds")

    def take(self, num_characters: int) -> None:
        """Check a size."""
        if num_characters > self.longest:
            raise TemplateLimitError.of(limits.TEMPLATE_CHARACTERS, "characters")

    def bind(self, value: object) -> None:
        """Check what becomes the value of a variable."""
        kind = type(value)
        if kind is str:
            self.take(len(value))  # type: ignore[arg-type]
        elif kind in (list, tuple, dict):
            self.take(self._weight(value))
        elif kind is int and value.bit_length() > MAX_INTEGER_BITS:  # type: ignore[attr-defined]
            raise TemplateLimitError.of(limits.TEMPLATE_CHARACTERS, "digits")

    def _weight(self, value: Any) -> int:
        """Return the size of a value as text, roughly. Nothing is changed in place, so each is looked at once."""
        if isinstance(value, str):
            return len(value) + 1
        if not isinstance(value, list | tuple | dict):
            return 1
        if (known := self._weights.get(id(value))) is None:
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            known = self._weights[id(value)] = (1 + sum(map(self._weight, parts)), value)
        return known[0]


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which counts."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._local = local()
        self.template_class = LimitedTemplate

    @property
    def budget(self) -> _Budget:
        """What the rendering that is under way may still take; one for each thread."""
        return self._local.budget  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Begin a rendering."""
        self._local.budget = _Budget()

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """Join what is written, of the whole or of a macro."""
        budget, total, found = self.budget, 0, []
        for part in parts:
            total += len(part)
            if total > budget.longest:
                budget.take(total)
            found.append(part)
        return "".join(found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what may multiply."""
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.budget.take(left.bit_length() * abs(right) * (self.budget.longest // MAX_INTEGER_BITS))
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, _JOINS) and isinstance(times, int):
                    self.budget.take(len(many) * times)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call something, with arguments that are not too large; a text's own methods may multiply."""
        budget = self.budget
        if isinstance(obj, Macro):
            for value in (*args, *kwargs.values()):
                budget.bind(value)
        elif type(obj) is BuiltinMethodType and (check := _GROWING.get(obj.__name__)):
            check(budget, obj.__self__, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Guard the `format` of a text."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        made: Callable[..., str] = wrapped

        def guarded(*args: Any, **kwargs: Any) -> str:
            _check_format(str(value.__self__), (args, kwargs))
            return made(*args, **kwargs)

        return guarded


class LimitedTemplate(jinja2.Template):
    """A template whose renderings have a budget."""

    environment: LimitedEnvironment

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render; what goes beyond a limit is an error."""
        self.environment.begin()
        return super().render(*args, **kwargs)


def _check_format(text: str, values: Any) -> None:
    """Refuse widths that are written, or handed in, without measure."""
    wide = _NUMBERS.search(text) or ("{" in text.partition("{")[2] and _holds_a_large_number(values))
    if wide:
        raise TemplateLimitError.of(limits.TEMPLATE_CHARACTERS, "characters (by the width of a formatted text)")


def _holds_a_large_number(values: Any) -> bool:
    if isinstance(values, dict | list | tuple):
        return any(map(_holds_a_large_number, values.values() if isinstance(values, dict) else values))
    return isinstance(values, int) and abs(values) > MAX_FORMAT_WIDTH


def _replace(budget: _Budget, text: str, old: str = "", new: str = "", *_: Any, **__: Any) -> None:
    if (len(text) + 1) * len(new) > budget.longest:  # counting is slow, and seldom needed
        budget.take(len(text) + text.count(old) * len(new))


def _pad(budget: _Budget, text: Any, width: Any = 0, *_: Any, **kwargs: Any) -> None:
    budget.take(max(0, *(value for value in (width, *kwargs.values()) if isinstance(value, int))))


def _expand(budget: _Budget, text: str, width: Any = 8, *_: Any, **kwargs: Any) -> None:
    largest = max([value for value in (width, *kwargs.values()) if isinstance(value, int)], default=8)
    budget.take(len(text) + max(0, largest) * max(text.count("\t"), text.count("\n") + 1))


def _join(budget: _Budget, separator: str, parts: Any = (), *_: Any, **__: Any) -> None:
    if isinstance(parts, list | tuple):
        budget.take(sum(len(part) for part in parts if isinstance(part, str)) + len(separator) * len(parts))


def _translate(budget: _Budget, text: str, table: Any = (), *_: Any, **__: Any) -> None:
    values = table.values() if isinstance(table, dict) else table
    longest = max((len(value) for value in values if isinstance(value, str)), default=1)
    budget.take(len(text) * longest)


_GROWING: dict[str, Callable[..., None]] = {
    "replace": _replace,
    "center": _pad,
    "ljust": _pad,
    "rjust": _pad,
    "zfill": _pad,
    "expandtabs": _expand,
    "join": _join,
    "translate": _translate,
}
"""Methods of texts whose result may be far longer than the text and the arguments."""


_WHOLE = ("join", "sum")
"""Filters that make one value of many, which are all looked at first."""


def _check_filter(budget: _Budget, name: str, value: Any, arguments: list[Any]) -> None:
    """Check a filter before it is applied: what it takes, and what it may multiply."""
    numbers = [abs(each) for each in arguments if isinstance(each, int)]
    if name == "replace" and isinstance(value, str):
        _replace(budget, value, *map(str, arguments[:2]))
    elif name == "join":
        _join(budget, str(arguments[0]) if arguments else "", value)
    elif name == "format" and isinstance(value, str):
        _check_format(value, arguments)
    elif name == "indent" and isinstance(value, str):
        widths = [len(each) for each in arguments if isinstance(each, str)]
        budget.take(len(value) + (value.count("\n") + 1) * max([*numbers, *widths], default=4))
    elif name == "sum" and isinstance(value, list | tuple):
        budget.take(sum(len(each) for each in value if isinstance(each, list | tuple)) * (len(value) + 1))
    elif (
        name not in ("int", "float", "default", "d", "abs", "string", "truncate")
        and max(numbers, default=0) > MAX_FORMAT_WIDTH
    ):
        raise TemplateLimitError.of(limits.TEMPLATE_CHARACTERS, f"characters (by an argument of the filter {name})")


def _guarded(environment: LimitedEnvironment, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Put the check before a filter, and one of its result behind it."""
    handed = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @wraps(apply)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = environment.budget
        if name in _WHOLE and len(args) > handed and not isinstance(args[handed], str):
            args = (*args[:handed], list(args[handed]), *args[handed + 1 :])
        value, arguments = args[handed] if len(args) > handed else None, [*args[handed + 1 :], *kwargs.values()]
        if type(value) in (list, tuple, dict):
            budget.bind(value)
        if arguments:
            _check_filter(budget, name, value, arguments)
        return apply(*args, **kwargs)

    return guarded


@jinja2.pass_context
def _count(context: Context, values: Any) -> Iterator[Any]:
    """Yield what a loop goes over, a step each."""
    tick = context.environment.budget.tick  # type: ignore[attr-defined]
    for value in values:
        tick()
        yield value


@jinja2.pass_context
def _tick(context: Context, value: Any) -> Any:
    """Take a step; of a macro, or of a loop that calls itself."""
    context.environment.budget.tick()  # type: ignore[attr-defined]
    return value


@jinja2.pass_context
def _bind(context: Context, value: Any) -> Any:
    """Check what is bound to a variable."""
    if not isinstance(value, Undefined):
        context.environment.budget.bind(value)  # type: ignore[attr-defined]
    return value


def _filter(node: nodes.Expr | None, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def instrument(tree: nodes.Template) -> None:
    """Write the counts into a syntax tree: into each loop, each macro, and wherever something is bound to a name."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filter(loop.iter, COUNT_FILTER, loop.lineno)
        if loop.recursive:
            loop.body.insert(0, _step(loop.lineno))
    blocks: list[nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
    for block in blocks:
        block.body.insert(0, _step(block.lineno))
    for assignment in list(tree.find_all(nodes.Assign)):
        assignment.node = _filter(assignment.node, VALUE_FILTER, assignment.lineno)
    for written in list(tree.find_all(nodes.AssignBlock)):
        written.filter = _filter(written.filter, VALUE_FILTER, written.lineno)


def _step(line: int) -> nodes.Stmt:
    return nodes.ExprStmt(_filter(nodes.Const(None, lineno=line), STEP_FILTER, line), lineno=line)


def _environment() -> LimitedEnvironment:
    """Return an environment with all that transformers gives templates, and the counts."""
    theirs = _theirs("").environment
    extensions = [type(each) for each in theirs.extensions.values()]
    ours = LimitedEnvironment(trim_blocks=theirs.trim_blocks, lstrip_blocks=theirs.lstrip_blocks, extensions=extensions)
    ours.globals.update({name: value for name, value in theirs.globals.items() if name not in ours.globals})
    ours.globals.update({name: theirs.globals[name] for name in ("dict", "namespace") if name in theirs.globals})
    ours.globals.pop("lipsum", None)  # words by chance, as many as are asked for
    ours.filters.update({name: _guarded(ours, name, each) for name, each in theirs.filters.items()})
    ours.filters.update({COUNT_FILTER: _count, STEP_FILTER: _tick, VALUE_FILTER: _bind})
    return ours


@lru_cache(maxsize=128)
def compile_template(chat_template: str) -> jinja2.Template:
    """Compile a chat template as transformers does, with limits."""
    environment = _environment()
    tree = environment.parse(chat_template)
    instrument(tree)
    tree.set_environment(environment)
    return environment.from_string(tree)


_theirs: Callable[[str], jinja2.Template] = chat_template_utils._compile_jinja_template


@cache
def install() -> None:
    """Make tokenizers render with limits; `apply_chat_template` has no place to hand an environment in."""
    chat_template_utils._compile_jinja_template = compile_template
