"""docs/loading.md lists existing keys."""

import re
from pathlib import Path
from typing import get_args

import yaml

from tuneline.config.sections.load import LoadConfig
from tuneline.config.sections.method import Method

PAGE = Path("docs/loading.md").read_text()


def test_the_snippet_is_a_load_section_with_every_key():
    snippet = yaml.safe_load(re.search(r"```yaml\n(load:.*?)```", PAGE, flags=re.DOTALL)[1])["load"]

    assert LoadConfig.model_validate(snippet)
    assert set(snippet) == set(LoadConfig.model_fields)


def test_every_method_is_documented_with_existing_keys():
    configs = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(Method)[0])}
    lines = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and cells[1].startswith("`"):
            lines |= dict.fromkeys(re.findall(r"`(\w+)`", cells[1]), re.findall(r"`(\w+)`", cells[3]))

    assert set(lines) == set(configs)
    for name, keys in lines.items():
        assert set(keys) <= set(configs[name].model_fields), name
