"""Batch inference: order, resuming, refusals, scores, and a server."""

import asyncio
import json
import os
import signal
import time

import pytest

from tests import openai_server, tiny
from tuneline.config.sections.sources import AlignConfig, SourceConfig
from tuneline.errors import DataError, RecipeError, SourceError
from tuneline.serve.chat.interface import ChatError
from tuneline.serve.predict import local, opening, remote
from tuneline.serve.predict.job import GenerationSettings, ModelIdentity, PredictJob
from tuneline.serve.predict.local import LocalModelAnswers
from tuneline.serve.predict.predict import predict_local, predict_remote

ROWS = [*tiny.alpaca_rows(11), {"instruction": "Without an answer"}]


@pytest.fixture(scope="session")
def lively_model(tmp_path_factory):
    """A tiny model whose weights are large enough for different answers."""
    import torch

    from tuneline.data.tokenizer.loader import load_tokenizer_from
    from tuneline.model.load import load_model

    folder = tiny.build_model(tmp_path_factory.mktemp("lively") / "model", seed=1)
    model = load_model(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.dim() == 2 else 1)
    model.save_pretrained(folder)
    return LocalModelAnswers(model.eval(), load_tokenizer_from(folder), "tiny/1"), folder


@pytest.fixture
def make_job(tmp_path, home):
    def make(rows=ROWS, output="out.jsonl", bad_rows="refuse", restart=False, batch_size=2, metrics=None, **settings):
        path = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
        return PredictJob(
            SourceConfig(name="input", path=path),
            tmp_path / output,
            AlignConfig(bad_rows=bad_rows),
            GenerationSettings(**{"max_new_tokens": 8, **settings}),
            batch_size,
            restart=restart,
            **({"metrics": metrics} if metrics else {}),
        )

    return make


@pytest.fixture
def predict(lively_model):
    def predict(job, name="tiny/1"):
        identity = ModelIdentity(name, "hash", dtype="float32")
        return predict_local(job, lambda: lively_model[0], identity)

    return predict


def lines(job):
    return [json.loads(line) for line in job.output.read_text().splitlines()]


def test_answers_are_in_the_order_of_the_input(make_job, predict, lively_model):
    from tuneline.evaluation.generation import generate

    job = make_job(batch_size=3)
    result = predict(job)

    written = lines(job)
    assert [line["row"] for line in written] == [f"rows.jsonl:{number}" for number in range(1, 13)]
    assert [line["messages"][0]["content"] for line in written] == [row["instruction"] for row in ROWS]
    assert [line["reference"] for line in written] == [row.get("output") for row in ROWS]
    assert {line["model"] for line in written} == {"tiny/1"}
    assert all(1 <= line["tokens"] <= 8 and line["finish_reason"] in ("stop", "length") for line in written)
    model = lively_model[0]
    prompts = [f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n" for row in ROWS]
    expected = generate.generate_answers(model._model, model._tokenizer, prompts, 8, 1)
    assert [line["answer"] for line in written] == expected
    assert len(set(expected)) > 2, "the answers differ, so their order is tested"
    assert (result.num_answers, result.num_resumed) == (12, 0)
    assert result.num_tokens == sum(line["tokens"] for line in written)


def test_a_finished_prediction_generates_nothing(make_job, predict, monkeypatch):
    job = make_job()
    predict(job)
    before = job.output.read_bytes()
    monkeypatch.setattr(local.generate, "stream_batches", lambda *arguments: pytest.fail("generates again"))

    result = predict(job)

    assert (result.num_answers, result.num_resumed, result.num_tokens) == (12, 12, 0)
    assert job.output.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 40, 900])
def test_a_half_written_last_line_is_cut_off_and_answered_again(make_job, predict, cut):
    job = make_job()
    predict(job)
    complete = job.output.read_bytes()
    job.output.write_bytes(complete[:-cut])

    result = predict(job)

    assert job.output.read_bytes() == complete
    assert result.num_resumed < 12


def test_new_rows_at_the_end_are_added(make_job, predict):
    predict(make_job(ROWS[:5]))
    job = make_job()

    result = predict(job)

    assert (result.num_resumed, result.num_answers) == (5, 12)
    assert [line["row"] for line in lines(job)] == [f"rows.jsonl:{number}" for number in range(1, 13)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_new_tokens": 9}, "max_new_tokens is 9, but was 8"),
        ({"temperature": 0.5}, "temperature is 0.5, but was 0.0"),
        ({"rows": [{"instruction": "Other", "output": "B"}, *ROWS[1:]]}, "row rows.jsonl:1 of the input has changed"),
        ({"rows": ROWS[:3]}, "its row rows.jsonl:4 is not in the input"),
    ],
)
def test_other_settings_and_rows_are_refused_or_start_again(make_job, predict, changes, reason):
    job = make_job()
    predict(job)
    before = job.output.read_bytes()

    with pytest.raises(RecipeError, match=f"out.jsonl cannot be resumed: .*{reason}.*pass --restart"):
        predict(make_job(**changes))
    assert job.output.read_bytes() == before
    result = predict(make_job(**changes, restart=True))
    assert result.num_resumed == 0
    assert job.output.read_bytes() != before


def test_another_model_is_refused_before_it_is_loaded(make_job, predict):
    predict(make_job())
    identity = ModelIdentity("tiny/2", "other hash", dtype="float32")

    with pytest.raises(RecipeError, match="model is 'tiny/2', but was 'tiny/1'; model_hash is 'other hash'"):
        predict_local(make_job(), lambda: pytest.fail("loads the model"), identity)


def test_other_files_are_not_touched(make_job, predict, tmp_path):
    job = make_job()
    job.output.write_text("mine\n")
    with pytest.raises(RecipeError, match="is not the output of a prediction"):
        predict(job)
    assert job.output.read_text() == "mine\n"
    with pytest.raises(RecipeError, match="is a file of the input"):
        predict(make_job(output="rows.jsonl", restart=True))
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match="expected a file"):
        predict(make_job(output="folder"))


def test_a_damaged_line_is_refused(make_job, predict):
    job = make_job()
    predict(job)
    job.output.write_text(job.output.read_text().replace('{"id"', "{id", 1))

    with pytest.raises(RecipeError, match="line 1 is damaged"):
        predict(job)


def test_two_predictions_cannot_write_one_file(make_job, predict):
    from tuneline.serve.predict.output import OutputFile

    job = make_job()
    with OutputFile(job.output, {}).locked(), pytest.raises(RecipeError, match="Another process writes"):
        predict(job)


def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(make_job, predict):
    jobs = [
        make_job(output=f"{name}.jsonl", temperature=1.0, seed=seed, batch_size=size)
        for name, seed, size in (("a", 1, 1), ("b", 1, 5), ("c", 2, 5))
    ]
    answers = []
    for job in jobs:
        predict(job)
        answers.append([line["answer"] for line in lines(job)])

    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_bad_rows_are_refused_with_their_place_or_dropped(make_job, predict):
    rows = [ROWS[0], {"instruction": "Hi " * 600, "output": "x"}, {"instruction": "", "output": "x"}, *ROWS[1:4]]
    with pytest.raises(DataError, match=r"rows.jsonl:3: turn 1 \(user\) is empty"):
        predict(make_job(rows))
    with pytest.raises(DataError, match=r"rows.jsonl:2: the prompt has \d+ tokens, .* Fix the row, or pass --bad-rows"):
        predict(make_job([*rows[:2], *rows[3:]]))
    job = make_job(rows, bad_rows="drop")
    result = predict(job)

    assert result.dropped == {"empty user turn": 1, "prompt too long": 1}
    assert [line.split(": ")[0] for line in result.dropped_first] == ["rows.jsonl:3", "rows.jsonl:2"]
    assert [line["row"] for line in lines(job)] == [f"rows.jsonl:{number}" for number in (1, 4, 5, 6)]
    assert predict(job).num_resumed == 4


def test_texts_are_continued(make_job, predict):
    job = make_job([{"text": "The quick brown fox"}, {"text": "It is"}])
    result = predict(job)

    assert [line["text"] for line in lines(job)] == ["The quick brown fox", "It is"]
    assert result.report is None
    assert not job.scores_path.exists()


def test_scores_equal_those_of_evaluate(make_job, predict):
    from tuneline.evaluation.metrics import overlap, rouge

    job = make_job(metrics=("rouge1", "exact_match", "token_f1", "bleu"), max_new_tokens=30)
    report = predict(job).report

    scored = [line for line in lines(job) if line["reference"]]
    texts = {"predictions": [x["answer"] for x in scored], "references": [x["reference"] for x in scored]}
    expected = rouge.Rouge(keep_in_memory=True).compute(**texts, kinds=["rouge1"], cut="words", use_stemmer=False)
    expected |= overlap.TokenF1(keep_in_memory=True).compute(**texts)
    assert (report.num_rows, report.num_scored) == (12, 11)
    assert set(report.metrics) == {"rouge1", "exact_match", "token_f1", "bleu"}
    for name in ("rouge1", "token_f1"):
        interval = report.metrics[name]
        assert interval.mean == pytest.approx(expected[name])
        assert interval.low <= interval.mean <= interval.high
    stored = json.loads(job.scores_path.read_text())
    assert stored["metrics"]["rouge1"]["num_items"] == 11
    assert "corpus_bleu" in stored["corpus"]
    assert (stored["model"], stored["rows"], stored["scored"]) == ("tiny/1", 12, 11)


def test_a_perfect_answer_scores_1(make_job, predict):
    job = make_job()
    predict(job)
    answers = [line["answer"] for line in lines(job)]
    again = make_job(
        [{"instruction": row["instruction"], "output": answer} for row, answer in zip(ROWS, answers, strict=True)],
        output="again.jsonl",
    )

    metrics = predict(again).report.metrics

    assert {name: interval.mean for name, interval in metrics.items() if name in ("exact_match", "token_f1")} == {
        "exact_match": 1.0,
        "token_f1": 1.0,
    }


def test_unknown_metrics_are_refused_before_the_model_is_loaded(make_job):
    with pytest.raises(RecipeError, match="unknown metric 'rogue1'. Did you mean 'rouge1'"):
        predict_local(make_job(metrics=("rogue1",)), lambda: pytest.fail("loads the model"), ModelIdentity("x"))


def test_missing_input_is_refused(make_job, predict, tmp_path):
    job = make_job()
    job.source.path.unlink()

    with pytest.raises(SourceError, match="rows.jsonl does not exist"):
        predict(job)


def test_a_killed_prediction_is_resumed(make_job, predict, monkeypatch):
    """A forked process is killed by SIGKILL in the middle, at a random point of a write."""
    rows = tiny.alpaca_rows(30)
    job = make_job(rows, output="killed.jsonl")
    monkeypatch.setattr(local, "CHUNK_BATCHES", 1)
    stream = local.generate.stream_batches
    child = os.fork()
    if child == 0:
        local.generate.stream_batches = lambda *arguments: (time.sleep(0.05), stream(*arguments))[1]
        predict(job)
        os._exit(0)
    end = time.monotonic() + 60
    while not (job.output.exists() and job.output.read_bytes().count(b"\n") >= 4):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child ended early"
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = job.output.read_bytes()
    assert 4 <= before.count(b"\n") < 30

    result = predict(job)

    assert result.num_resumed == before.count(b"\n")
    assert job.output.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    whole = make_job(rows, output="whole.jsonl")
    predict(whole)
    assert job.output.read_bytes() == whole.output.read_bytes()


def with_server(job, script, **options):
    with openai_server.serve(script, **options) as server:
        client, identity = opening.open_server(server.url, "", options.get("key"))
        return predict_remote(job, client, identity), server


def test_a_server_answers_several_rows_at_the_same_time_in_order(make_job):
    import random

    def script(body):
        time.sleep(random.Random(body["messages"][-1]["content"]).random() / 10)
        return openai_server.echo(body)

    job = make_job(batch_size=4, temperature=0.5, seed=3)
    result, server = with_server(job, script, key="secret")

    assert [line["answer"].replace("You said: ", "") for line in lines(job)] == [
        row["instruction"].replace(" ", "") for row in ROWS
    ]
    assert {body["max_tokens"] for body in server.requests} == {8}
    assert {(body["temperature"], body["seed"]) for body in server.requests} == {(0.5, 3)}
    assert (result.num_answers, result.report.num_scored) == (12, 11)
    assert lines(job)[0]["model"] == "tiny/1"
    assert lines(job)[0]["tokens"] == 6


def test_a_busy_server_is_asked_again(make_job, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    failures = iter([429, 503, 503])

    def script(body):
        status = next(failures, None)
        return {"status": status, "body": {"error": {"message": "busy"}}} if status else openai_server.echo(body)

    result, server = with_server(make_job(), script)

    assert result.num_answers == 12
    assert len(server.requests) == 15


def test_a_row_that_the_server_refuses_is_an_error_or_dropped(make_job):
    def script(body):
        if body["messages"][-1]["content"] == ROWS[5]["instruction"]:
            return {"status": 400, "body": {"error": {"message": "too long"}}}
        return openai_server.echo(body)

    job = make_job()
    with pytest.raises(DataError, match="rows.jsonl:6: .*too long.*--bad-rows drop"):
        with_server(job, script)
    assert [line["row"] for line in lines(job)] == [f"rows.jsonl:{number}" for number in range(1, 6)]

    with openai_server.serve(script) as server:
        for bad_rows, expected in (("drop", 11), ("drop", 11)):
            client, identity = opening.open_server(server.url, "", None)
            job = make_job(bad_rows=bad_rows, output="dropped.jsonl")
            result = predict_remote(job, client, identity)
            assert result.num_answers == expected
    assert result.num_resumed == 11


def test_a_server_that_fails_for_good_ends_the_prediction_and_it_is_resumed(make_job, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.001)
    broken = True

    def script(body):
        if broken and body["messages"][-1]["content"] == ROWS[7]["instruction"]:
            return {"status": 500, "body": {"error": {"message": "out of memory"}}}
        return openai_server.echo(body)

    job = make_job(batch_size=1)
    with openai_server.serve(script) as server:
        client, identity = opening.open_server(server.url, "", None)
        with pytest.raises(ChatError, match="status 500: out of memory"):
            predict_remote(job, client, identity)
        finished = len(lines(job))
        assert 1 <= finished <= 7
        broken = False
        client, identity = opening.open_server(server.url, "", None)
        result = predict_remote(job, client, identity)

    assert (result.num_resumed, result.num_answers) == (finished, 12)


def test_texts_calls_and_results_are_sent_in_the_form_of_the_api(make_job):
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    chat = {
        "messages": [
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
        ],
        "tools": [{"name": "f"}],
    }
    _, server = with_server(make_job([chat]), lambda body: {"pieces": ["3."], "reasoning": ["Hm."]})
    (body,) = server.requests
    assert body["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}, "id": "call_1"}
    ]
    assert body["messages"][2] == {"role": "tool", "content": "3", "tool_call_id": "call_1"}
    assert body["tools"] == [{"type": "function", "function": {"name": "f"}}]

    _, server = with_server(make_job([{"text": "The fox"}], output="texts.jsonl"), lambda body: {"pieces": ["jumps"]})
    assert server.requests[0]["prompt"] == "The fox"


def test_no_request_is_left_when_a_prediction_ends_early(make_job):
    from tuneline.data.align.prompts import PromptRow

    async def run(url):
        client = opening.HttpClient(url, "tiny/1")
        rows = [
            PromptRow(f"r:{i}", f"r:{i}", [{"role": "user", "content": str(i), "tool_calls": None, "train": None}])
            for i in range(9)
        ]
        stream = remote.answers(client, rows, 3, GenerationSettings())
        await anext(stream)
        await stream.aclose()
        tasks = [task for task in asyncio.all_tasks() if "_outcome" in repr(task)]
        await client.close()
        return tasks

    with openai_server.serve(lambda body: {"pieces": ["x"] * 50, "delay": 0.01}) as server:
        assert asyncio.run(run(server.url)) == []
