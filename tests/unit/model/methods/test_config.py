"""`method` sections that would train nothing are rejected."""

import pytest
from pydantic import ValidationError

from tuneline.config.sections.method import AdaloraMethod, BottleneckMethod, FreezeMethod

REJECTED = {
    "nothing is trained": (FreezeMethod, {"type": "freeze", "layers": 0}, "nothing would be trained"),
    "parts of no layer": (
        FreezeMethod,
        {"type": "freeze", "layers": 0, "trainable_modules": ["mlp"], "extra_modules": ["norm"]},
        "no module of a layer is trained",
    ),
    "no part": (FreezeMethod, {"type": "freeze", "trainable_modules": []}, "an empty list trains no module"),
    "no place": (BottleneckMethod, {"type": "bottleneck", "after": []}, "at least 1 item"),
    "a place twice": (BottleneckMethod, {"type": "bottleneck", "after": ["mlp", "mlp"]}, "'mlp' is listed twice"),
    "ranks that rise": (AdaloraMethod, {"type": "adalora", "init_r": 2, "target_r": 4}, "ranks can only decrease"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_section_without_effect_is_rejected(name):
    config_class, values, message = REJECTED[name]

    with pytest.raises(ValidationError, match=message):
        config_class(**values)


def test_only_the_head_can_be_trained():
    assert FreezeMethod(type="freeze", layers=0, extra_modules=["lm_head"]).layers == 0
