"""Pages are escaped, complete in themselves, and made by the templates alone."""

import subprocess
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from tuneline.html import render

TEMPLATES = render.FOLDER / "templates"
PAGES = sorted(path.name for path in TEMPLATES.glob("*.html.jinja"))


def test_values_are_escaped_and_the_stylesheet_is_part_of_the_page():
    page = render.page(
        "table", title="<a> & b", tables=[("<h>", ["<n>"], [["<script>alert('x')</script>"]])], texts=[("t", "<pre>")]
    )

    assert page.startswith("<!doctype html>")
    assert "<title>&lt;a&gt; &amp; b</title>" in page
    for text in ("<h2>&lt;h&gt;</h2>", "<th>&lt;n&gt;</th>", "<td>&lt;script&gt;alert(", "<pre>&lt;pre&gt;</pre>"):
        assert text in page
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "font: 15px/1.5 system-ui" in page, "the stylesheet is not escaped"


def test_a_page_without_a_value_for_a_variable_is_an_error():
    with pytest.raises(UndefinedError, match="texts"):
        render.page("table", title="t", tables=[])


@pytest.mark.parametrize("name", PAGES)
def test_no_page_loads_anything_from_elsewhere(name):
    text = (TEMPLATES / name).read_text()

    assert "http" not in text
    assert "style=" not in text or name == "data_preview.html.jinja", "colors and sizes belong in the stylesheet"


def test_no_module_builds_html_by_hand():
    tags = r"<(td|tr|th|table|li|h1|h2|p|style|!doctype)\b[^|]*['\"]"
    files = subprocess.run(
        ["grep", "-rlE", tags, "--include=*.py", "tuneline", "steps", "pipelines", "materializers"],
        capture_output=True,
        text=True,
    ).stdout.split()

    assert files == ["tuneline/data/ingest/readers/text_stream.py"], "only the check for downloaded error pages"
    assert len(list(Path("tuneline").rglob("*.css"))) == 1
