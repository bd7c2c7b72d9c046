"""The page of a training report: loss curves, settings and samples."""

import re

from tuneline.train.html_report import to_html
from tuneline.train.report import TrainingReport


def make_report(history):
    return TrainingReport(
        load={"dtype": "auto"},
        method={"type": "lora", "r": 8},
        train={"learning_rate": 1e-4},
        decisions={"dtype": "float32: no CUDA device"},
        history=history,
        samples=[{"step": 2, "prompt": "What?", "answer": "<b>This.</b>"}],
        summary={"seconds": 1234.5678},
        environment={"torch": "2.11"},
    )


def test_the_loss_curves_are_lines_through_every_step():
    history = [{"step": float(i), "loss": 3.0 - i / 10, "learning_rate": 1e-4} for i in range(1, 11)]
    history.append({"step": 10.0, "validation_loss": 2.2})

    page = to_html(make_report(history))

    training, validation, rate = re.findall(r'<polyline class="line-\d" points="([^"]*)"', page)
    assert (len(training.split()), len(validation.split()), len(rate.split())) == (10, 1, 10)
    assert ">loss</text>" in page
    assert "optimizer step" in page


def test_the_page_shows_settings_choices_and_samples_as_text():
    page = to_html(make_report([]))

    assert "<svg" not in page
    for name, value in (
        ("learning_rate", "0.0001"),
        ("r", "8"),
        ("dtype", "auto"),
        ("dtype", "float32: no CUDA device"),
        ("seconds", "1,234.57"),
        ("torch", "2.11"),
    ):
        assert f"<tr><td>{name}</td><td>{value}</td></tr>" in page
    assert "<td>&lt;b&gt;This.&lt;/b&gt;</td>" in page
    assert "http" not in page
