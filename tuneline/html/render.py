"""Render the pages of reports from the templates in this folder, each a single file without external resources."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent


def page(name: str, **values: Any) -> str:
    """Render a template; every value is escaped.

    Args:
        name: Template below `templates/`, without `.html.jinja`.
        values: Variables of the template; a missing one is an error.
    """
    return _environment().get_template(f"{name}.html.jinja").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["stylesheet"] = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    return environment
