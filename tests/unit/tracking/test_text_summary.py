"""Summaries of prompts, answers and curves."""

from tuneline.tracking import text_summary


def test_a_chat_is_summarized_by_its_last_question():
    prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is\nfour?<|im_end|>\n<|im_start|>assistant"

    assert text_summary.summarize_prompt(prompt) == "What is four?"


def test_a_long_prompt_keeps_its_end_and_a_long_answer_its_beginning():
    assert text_summary.summarize_prompt("x" * 50 + " the question", width=20) == "... xxx the question"
    assert text_summary.summarize_answer("the answer " + "x" * 50, width=20) == "the answer xxxxx ..."
    assert text_summary.summarize_answer(" \n") == "(empty)"


def test_a_curve_is_summarized_by_the_means_of_its_fifths():
    assert text_summary.fifth_means([float(i) for i in range(10)]) == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert text_summary.fifth_means([1.0, 2.0]) == []
