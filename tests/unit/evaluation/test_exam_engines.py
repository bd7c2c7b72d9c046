"""The letters that we choose are those that lm-evaluation-harness chooses on real subjects, by the same protocol."""

import json
from pathlib import Path

import pytest

from benchmarks import exam_throughput
from benchmarks.peers import process

pytestmark = pytest.mark.slow
SUBJECTS = ["mmlu:conceptual_physics", "cmmlu:traditional_chinese_medicine", "ceval:middle_school_politics"]


def test_three_engines_choose_the_same_letters(test_data, home, tmp_path):
    from tuneline.config.sections.model import CatalogueModel
    from tuneline.model import source

    tokenizer, _, _ = source.resolve_model(CatalogueModel(type="catalogue", name="smollm2-135m-instruct"))
    asked = exam_throughput.questions(SUBJECTS, 4, test_data / "exams")
    path = Path(tmp_path / "questions.json")
    path.write_text(json.dumps(asked), encoding="utf-8")
    told = {"model": tokenizer.only().location, "questions": str(path), "batch_size": 2}

    found = {name: process.run("exam_engines", {**told, "engine": name}) for name in exam_throughput.ENGINES}

    assert len(found["ours"]["answers"]) == 12
    assert found["ours"]["answers"] == found["lm_eval"]["answers"] == found["llamafactory_loop"]["answers"]
