"""Chat templates that loop or write without bound are refused while rendering; others render as in transformers."""

import resource
import signal
import time
from pathlib import Path

import jinja2
import pytest
from transformers.utils import chat_template_utils

from tuneline.data.chat_template import render, selection
from tuneline.data.schema import message
from tuneline.data.tokenizer import template_sandbox
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import DataError, SourceError

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
VARIABLES = {"messages": CHAT, "tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>"}
LOOP_START = "{% set ns = namespace(x='ab', n=0) %}{% for i in range(60) %}"
LOOP_END = "{% endfor %}{{ ns.x | length }}"

STEPS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops with a test": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "lists": "{% set l = range(9999) | list %}{% for a in l * 9 %}{% for b in l %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "calls": "{% macro f() %}{{ caller() }}{% endmacro %}{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% call f() %}{% endcall %}{% endfor %}{% endfor %}",
    "recursion": "{% for a in [0, 0] recursive %}{% if loop.depth < 60 %}{{ loop([0, 0]) }}{% endif %}{% endfor %}",
    "generation": "{% for a in range(99999) %}{% for b in range(99999) %}{% generation %}{% endgeneration %}"
    "{% endfor %}{% endfor %}",
}
SIZES = {
    "output": "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "macro output": "{% macro f() %}{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endmacro %}{{ f() }}",
    "block output": "{% set x %}{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
    "twice as long": LOOP_START + "{% set ns.x = ns.x ~ ns.x %}" + LOOP_END,
    "twice as long by plus": LOOP_START + "{% set ns.x = ns.x + ns.x %}" + LOOP_END,
    "twice as long in a block": LOOP_START + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}" + LOOP_END,
    "twice as long by a format": LOOP_START + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}" + LOOP_END,
    "twice as long by an argument": "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}"
    "{{ f('ab', 60) | length }}",
    "replaced": LOOP_START + "{% set ns.x = ns.x.replace('a', 'aa') %}" + LOOP_END,
    "replaced by a filter": LOOP_START + "{% set ns.x = ns.x | replace('a', 'aa') %}" + LOOP_END,
    "replaced squared": LOOP_START + "{% if ns.x | length < 20000 %}{% set ns.x = ns.x ~ ns.x %}{% endif %}{% endfor %}"
    "{{ ns.x.replace('a', ns.x) | length }}",
    "joined squared": LOOP_START + "{% if ns.x | length < 20000 %}{% set ns.x = ns.x ~ ns.x %}{% endif %}{% endfor %}"
    "{{ ns.x.join(range(99999) | map('string') | list) | length }}",
    "joined squared by a filter": LOOP_START + "{% if ns.x | length < 20000 %}{% set ns.x = ns.x ~ ns.x %}{% endif %}"
    "{% endfor %}{{ (range(99999) | map('string') | join(ns.x)) | length }}",
    "times": "{{ ('a' * 10 ** 10) | length }}",
    "times of a list": "{{ ([1] * 10 ** 10) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a power": LOOP_START + "{% set ns.n = (ns.n + 10) * (ns.n + 10) %}" + LOOP_END,
    "nested lists": LOOP_START + "{% set ns.x = [ns.x, ns.x] %}" + "{% endfor %}{{ ns.x | string | length }}",
    "nested mappings": LOOP_START
    + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
    + "{% endfor %}{{ ns.x | tojson | length }}",
    "nested by batches": LOOP_START + "{% set ns.x = ([ns.x] * 2) | batch(2) | list %}{% endfor %}{{ ns.x | string }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format by a width": "{{ '%*d' % (1000000000, 1) }}",
    "format of a text": "{{ '{:1000000000}'.format(1) }}",
    "format of a text by a width": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format by a filter": "{{ '%1000000000d' | format(1) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "rjust": "{{ 'a'.rjust(1000000000) }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "expandtabs squared": "{{ ('\\t' * 99999).expandtabs(9999) | length }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) | length }}",
    "center by a filter": "{{ 'a' | center(1000000000) }}",
    "indent": "{{ ('a\\n' * 99999) | indent(9999) | length }}",
    "indent by a text": "{{ ('a\\n' * 99999) | indent('b' * 99999) | length }}",
    "json": "{{ messages | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "slice": "{{ [1] | slice(1000000000, 0) | list | length }}",
    "wordwrap": "{{ 'a' | wordwrap(0 + 1000000000) }}",
    "sum": "{% set l = range(9999) | list %}{{ ([l] * 9999) | sum(start=[]) | length }}",
}
OTHERS = {
    "lipsum": "{{ lipsum(n=1000000000) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nested brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a bad index": "{{ 'a'.index('b') }}",
    "a division": "{{ 1 // 0 }}",
}


@pytest.fixture(autouse=True)
def limited_memory_and_time():
    """Limit each test to 30 seconds, and to 4 GB of memory more than are in use."""

    def stop(*_):
        raise AssertionError("the rendering did not end")

    before = signal.signal(signal.SIGALRM, stop)
    old = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), old[1]))
    signal.alarm(30)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, old)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_TEMPLATE_STEPS", "20000")
    monkeypatch.setenv("TUNELINE_MAX_TEMPLATE_CHARACTERS", "1M")


def rendered(text: str) -> str:
    return template_sandbox.compile_template(text).render(**VARIABLES)


@pytest.mark.parametrize("name", STEPS)
def test_a_template_with_too_many_steps_is_refused(name):
    with pytest.raises(SourceError, match=r"the chat template takes more than 20,000 steps .*TEMPLATE_STEPS"):
        rendered(STEPS[name])


@pytest.mark.parametrize("name", SIZES)
def test_a_template_that_makes_too_large_values_is_refused(name):
    with pytest.raises(SourceError, match=r"the chat template takes more than [\d,]+ \w+ .*TUNELINE_MAX_TEMPLATE"):
        rendered(SIZES[name])


@pytest.mark.parametrize("name", OTHERS)
def test_errors_of_jinja_are_reported_as_errors_of_the_template(tiny_model, name):
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template = OTHERS[name]

    with pytest.raises(DataError, match="he chat template refuses a conversation of user"):
        render.apply_chat_template([message("user", "Q")], "", tokenizer)


def test_a_template_with_slow_steps_is_stopped_by_the_time_limit(monkeypatch):
    monkeypatch.setenv("TUNELINE_MAX_TEMPLATE_SECONDS", "1")
    text = (
        "{% set x = 'a' * 999999 %}{% for i in range(19999) %}{% if x.replace('a', 'b') == i %}{% endif %}{% endfor %}"
    )

    start = time.monotonic()
    with pytest.raises(SourceError, match="takes more than 1 seconds"):
        rendered(text)

    assert time.monotonic() - start < 5


def test_every_rendering_has_the_full_budget():
    text = "{% for i in range(15000) %}{% endfor %}done"

    assert [rendered(text) for _ in range(3)] == ["done"] * 3


def test_a_tokenizer_renders_with_limits(tiny_model):
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template = STEPS["loops"]

    with pytest.raises(SourceError, match="takes more than 20,000 steps"):
        tokenizer.apply_chat_template(CHAT, tokenize=False)


SAME = [
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex0 }}"
    "{{ loop.previtem.role }}{{ loop.nextitem.role }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}{% for m in missing %}x{% else %}none{% endfor %}",
    "{% for a in [[1, [2]], [3]] recursive %}{{ loop.depth }}"
    "{% if a is iterable %}{{ loop(a) }}{% endif %}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "{% for c in 'abc' %}{{ c }}{% endfor %}",
    "{% set x %} a {{ messages[0].content }} {% endset %}[{{ x }}]{% set y | trim | upper %} b {% endset %}[{{ y }}]",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "{% macro f(x, y='d') %}<{{ x }}{{ y }}{{ varargs }}{{ kwargs }}>{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, z=4) }}",
    "{% macro f(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) f('a') %}[{{ y }}]{% endcall %}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "{{ messages | tojson(indent=2) }}{{ 'ab' | center(9) }}{{ 'a\nb' | indent(3) }}",
    "{{ [1, 2, 3] | batch(2, 0) | list }}",
    "{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}|{!r}'.format('a', 'b') }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ 3 * [1] }}",
    "{{ ' a '.strip() }}{{ 'a,b'.split(',') }}{{ 'ab'.replace('a', 'cc') }}{{ '-'.join(['a', 'b']) }}",
    "{{ 'a'.ljust(4) }}|",
    "{% generation %}a{% endgeneration %}{{ bos_token }}{{ messages[-1]['content'] }}",
    "{{ messages[1:] }}{{ x is defined }}",
    "{% filter upper %}abc{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}{{ dict(a=1) }}",
    "{{ 1.5 | round }}{{ 'a' ~ 1 }}",
    "{% if not add_generation_prompt and tools is none %}{{ messages | length }}{% endif %}",
    "{# a word #}{%- set x = 1 -%}",
]


@pytest.mark.parametrize("text", [*SAME, *map(selection.read_template, selection.template_names())])
def test_a_template_renders_as_in_transformers(text):
    def outcome(compile_template):
        try:
            return compile_template(text).render(**VARIABLES)
        except jinja2.TemplateError as error:
            return repr(error)

    assert outcome(template_sandbox.compile_template) == outcome(template_sandbox._compile_unlimited)


def test_an_exception_of_a_template_is_reported(tiny_model):
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template = "{{ raise_exception('no system, please') }}"

    with pytest.raises(DataError, match="no system, please"):
        render.apply_chat_template([message("user", "Q")], "", tokenizer)


def test_transformers_renders_without_limits():
    """When transformers limits rendering itself, the sandbox can be removed."""
    assert not template_sandbox._compile_unlimited("").environment.intercepted_binops
    assert template_sandbox._compile_unlimited("{{ ('a' * 2000000) | length }}").render() == "2000000"
    assert chat_template_utils.render_jinja_template.__globals__["_compile_jinja_template"] is not None
