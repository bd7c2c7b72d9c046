"""Each field of a request reaches the engine, and nothing else changes."""

from dataclasses import asdict

import pytest

from tuneline.serve.engines.interface import Sampling

MESSAGES = [{"role": "user", "content": "What is one and two?"}]
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}

SAMPLING = [
    ("temperature", 0.25),
    ("temperature", 0),
    ("top_p", 0.5),
    ("top_k", 7),
    ("min_p", 0.125),
    ("presence_penalty", -1.5),
    ("frequency_penalty", 0.75),
    ("repetition_penalty", 1.25),
    ("seed", 11),
]


def fields_that_differ(sampling):
    return {name: value for name, value in asdict(sampling).items() if value != asdict(Sampling())[name]}


def chat(client, **fields):
    return client.chat.completions.create(model="demo@champion", messages=MESSAGES, extra_body=fields)


def complete(client, **fields):
    return client.completions.create(model="demo@champion", prompt="One", extra_body=fields)


@pytest.mark.parametrize("send", [chat, complete])
@pytest.mark.parametrize(("name", "value"), SAMPLING)
def test_a_sampling_field_reaches_the_engine_alone(server, client, send, name, value):
    send(client, **{name: value})

    assert fields_that_differ(server.engine.requests[-1].sampling) == {name: value}


@pytest.mark.parametrize("send", [chat, complete])
def test_a_request_without_fields_has_neutral_sampling(server, client, send):
    send(client)

    request = server.engine.requests[-1]
    assert request.sampling == Sampling()
    assert (request.grammar, request.top_logprobs, request.adapter) == (None, None, None)


def test_a_top_k_of_minus_one_keeps_all_tokens(server, client):
    chat(client, top_k=-1)

    assert server.engine.requests[-1].sampling.top_k == 0


@pytest.mark.parametrize("send", [chat, complete])
def test_logit_bias_is_by_token_id(server, client, send):
    send(client, logit_bias={"5": -100, "17": 2.5})

    assert server.engine.requests[-1].sampling.logit_bias == {5: -100, 17: 2.5}


def test_the_prompt_is_rendered_with_the_template(server, client, tokenizer):
    chat(client)

    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert server.engine.requests[-1].prompt_ids == expected


def test_the_stop_tokens_of_the_version_end_an_answer(server, client, tokenizer):
    chat(client)

    assert server.engine.requests[-1].stop_ids == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_reaches_the_engine(server, client, name):
    answer = chat(client, **{name: 3})

    assert server.engine.requests[-1].max_tokens == 3
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_chats_may_fill_the_context_by_default(server, client):
    chat(client)

    request = server.engine.requests[-1]
    assert request.max_tokens == server.engine.max_length - len(request.prompt_ids)


def test_completions_have_sixteen_tokens_by_default(server, client):
    complete(client)

    assert server.engine.requests[-1].max_tokens == 16


def test_n_answers_have_seeds_of_their_own(server, client):
    answer = chat(client, n=3, seed=5)

    assert sorted(request.sampling.seed for request in server.engine.requests) == [5, 6, 7]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_n_answers_without_seed_have_none(server, client):
    complete(client, n=2)

    assert [request.sampling.seed for request in server.engine.requests] == [None, None]


@pytest.mark.parametrize(("sent", "expected"), [({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 2}, 2)])
def test_log_probabilities_of_chats_reach_the_engine(server, client, sent, expected):
    chat(client, **sent)

    assert server.engine.requests[-1].top_logprobs == expected


def test_log_probabilities_of_completions_reach_the_engine(server, client):
    complete(client, logprobs=2)

    assert server.engine.requests[-1].top_logprobs == 2


@pytest.mark.parametrize("send", [chat, complete])
def test_a_json_object_is_a_grammar(server, client, send):
    send(client, response_format={"type": "json_object"})

    assert server.engine.requests[-1].grammar.kind == "json_object"


def test_a_json_schema_is_a_grammar(server, client):
    chat(client, response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}})

    grammar = server.engine.requests[-1].grammar
    assert grammar.kind == "json_schema"
    assert '"integer"' in grammar.text


def test_text_is_no_grammar(server, client):
    chat(client, response_format={"type": "text"})

    assert server.engine.requests[-1].grammar is None


def test_the_user_changes_nothing(server, client):
    chat(client, user="someone")

    assert server.engine.requests[-1].sampling == Sampling()


@pytest.mark.parametrize("fields", [{"parallel_tool_calls": True}, {"store": False}, {"metadata": None}])
def test_fields_of_openai_that_change_nothing_are_accepted(server, client, fields):
    client.chat.completions.create(model="", messages=MESSAGES, extra_body=fields)

    assert server.engine.requests[-1].sampling == Sampling()


def test_values_that_change_nothing_are_accepted_by_an_engine_without_the_field(server, client):
    names = {"top_k", "min_p", "response_format", "tool_choice", "logprobs", "seed", "logit_bias"}
    server.engine.unsupported = frozenset(names)

    chat(client, top_k=0, min_p=0, response_format={"type": "text"}, tool_choice="none", logprobs=False, logit_bias={})

    assert server.engine.requests[-1].sampling == Sampling()


@pytest.mark.parametrize("prompt", ["One two", ["One two"]])
def test_completions_accept_texts(server, client, tokenizer, prompt):
    client.completions.create(model="", prompt=prompt)

    assert [request.prompt_ids for request in server.engine.requests] == [tokenizer("One two")["input_ids"]]


def test_completions_accept_token_ids(server, client):
    client.completions.create(model="", prompt=[40, 41, 42])

    assert [request.prompt_ids for request in server.engine.requests] == [[40, 41, 42]]


def test_completions_number_the_choices_by_prompt(server, client):
    answer = client.completions.create(model="", prompt=[[40], [41, 42]], n=2)

    assert [request.prompt_ids for request in server.engine.requests] == [[40], [40], [41, 42], [41, 42]]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 3


def test_parts_of_a_message_become_one_text(server, client, tokenizer):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "one and two?"}]
    client.chat.completions.create(model="", messages=[{"role": "user", "content": parts}])

    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert server.engine.requests[-1].prompt_ids == expected


def test_an_earlier_answer_of_the_client_library_is_accepted(server, client):
    answer = chat(client).choices[0].message

    client.chat.completions.create(model="", messages=[*MESSAGES, answer, *MESSAGES])

    assert len(server.engine.requests) == 2
