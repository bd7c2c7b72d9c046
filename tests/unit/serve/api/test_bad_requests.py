"""Bad requests of chats and their exact answers."""

import httpx2 as httpx
import pytest

from tests import api_server

CHAT = "/v1/chat/completions"
ADD = {"type": "function", "function": {"name": "add"}}


def chat(**fields):
    return CHAT, {"messages": [{"role": "user", "content": "Hi"}], **fields}


# (path, body), status, param, code, message
CASES = [
    (
        (CHAT, "{"),
        400,
        None,
        "invalid_json",
        "The body is not valid JSON: EOF while parsing an object at line 1 column 1. Send a JSON object.",
    ),
    ((CHAT, "[1]"), 400, None, "invalid_json", "The body is not a JSON object. Send a JSON object."),
    (
        (CHAT, ""),
        400,
        None,
        "invalid_json",
        "The body is not valid JSON: EOF while parsing a value at line 1 column 0. Send a JSON object.",
    ),
    (
        (CHAT, '{"messages": "\\ud800"}'),
        400,
        None,
        "invalid_json",
        "The body is not valid JSON: unexpected end of hex escape at line 1 column 21. Send a JSON object.",
    ),
    ((CHAT, {}), 400, "messages", "missing_field", "The field 'messages' is missing. Add it."),
    (
        (CHAT, {"messages": []}),
        400,
        "messages",
        "invalid_value",
        "Invalid value of 'messages': []; expected at least 1 item.",
    ),
    (
        chat(temprature=1),
        400,
        "temprature",
        "unknown_field",
        "Unknown field 'temprature'. Did you mean 'temperature'? Remove or correct it.",
    ),
    (chat(foo=1), 400, "foo", "unknown_field", "Unknown field 'foo'. Remove or correct it."),
    (
        (CHAT, {"messages": [{"role": "usr", "content": "x"}]}),
        400,
        "messages[0].role",
        "invalid_value",
        "Invalid value of 'messages[0].role': \"usr\"; expected 'system', 'developer', 'user', 'assistant' or 'tool'.",
    ),
    (
        (CHAT, {"messages": [{"role": "user", "content": 5}]}),
        400,
        "messages[0].content",
        "invalid_value",
        "Invalid value of 'messages[0].content': 5; expected a valid string, or a valid array.",
    ),
    (
        (CHAT, {"messages": [{"role": "user"}]}),
        400,
        "messages[0]",
        "invalid_value",
        "Invalid value of 'messages[0]': a message of role 'user' needs 'content'.",
    ),
    (
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        400,
        "messages[0].content[0].type",
        "invalid_value",
        "Invalid value of 'messages[0].content[0].type': \"image_url\"; expected 'text'.",
    ),
    (
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]}
                ]
            },
        ),
        400,
        "messages[0]",
        "invalid_value",
        "Invalid value of 'messages[0]': only messages of role 'assistant' have 'tool_calls', and the role is 'user'.",
    ),
    (
        (CHAT, {"messages": [{"role": "user", "contents": "x"}]}),
        400,
        "messages[0].contents",
        "unknown_field",
        "Unknown field 'messages[0].contents'. Did you mean 'content'? Remove or correct it.",
    ),
    (
        chat(temperature=3),
        400,
        "temperature",
        "invalid_value",
        "Invalid value of 'temperature': 3; expected less than or equal to 2.",
    ),
    (
        chat(temperature="1"),
        400,
        "temperature",
        "invalid_value",
        "Invalid value of 'temperature': \"1\"; expected a valid number.",
    ),
    (chat(top_p=0), 400, "top_p", "invalid_value", "Invalid value of 'top_p': 0; expected greater than 0."),
    (
        chat(top_k=-2),
        400,
        "top_k",
        "invalid_value",
        "Invalid value of 'top_k': -2; expected greater than or equal to -1.",
    ),
    (
        chat(min_p=1.5),
        400,
        "min_p",
        "invalid_value",
        "Invalid value of 'min_p': 1.5; expected less than or equal to 1.",
    ),
    (
        chat(presence_penalty=-3),
        400,
        "presence_penalty",
        "invalid_value",
        "Invalid value of 'presence_penalty': -3; expected greater than or equal to -2.",
    ),
    (
        chat(frequency_penalty=2.5),
        400,
        "frequency_penalty",
        "invalid_value",
        "Invalid value of 'frequency_penalty': 2.5; expected less than or equal to 2.",
    ),
    (
        chat(repetition_penalty=0),
        400,
        "repetition_penalty",
        "invalid_value",
        "Invalid value of 'repetition_penalty': 0; expected greater than 0.",
    ),
    (chat(n=0), 400, "n", "invalid_value", "Invalid value of 'n': 0; expected greater than or equal to 1."),
    (chat(n=129), 400, "n", "invalid_value", "The request needs 129 answers; at most 128 are allowed. Send fewer."),
    (chat(n=1.5), 400, "n", "invalid_value", "Invalid value of 'n': 1.5; expected a valid integer."),
    (chat(seed="7"), 400, "seed", "invalid_value", "Invalid value of 'seed': \"7\"; expected a valid integer."),
    (
        chat(seed=2**63),
        400,
        "seed",
        "invalid_value",
        "Invalid value of 'seed': 9223372036854775808; expected less than or equal to 9223372036854775807.",
    ),
    (
        chat(stop=5),
        400,
        "stop",
        "invalid_value",
        "Invalid value of 'stop': 5; expected a valid string, or a valid array.",
    ),
    (
        chat(stop=[""]),
        400,
        "stop[0]",
        "invalid_value",
        "Invalid value of 'stop[0]': \"\"; expected at least 1 character.",
    ),
    (
        chat(stop=["x"] * 17),
        400,
        "stop",
        "invalid_value",
        "Invalid value of 'stop': 17 stop strings, expected at most 16.",
    ),
    (
        chat(logit_bias={"a": 1}),
        400,
        "logit_bias",
        "invalid_value",
        "Invalid value of 'logit_bias': the key 'a' is not a token id.",
    ),
    (
        chat(logit_bias={"9999": 1}),
        400,
        "logit_bias",
        "invalid_value",
        "'logit_bias' has the token id 9999; the vocabulary has 308 tokens. Correct it.",
    ),
    (
        chat(logit_bias={"5": 101}),
        400,
        "logit_bias",
        "invalid_value",
        "Invalid value of 'logit_bias': 101; expected less than or equal to 100.",
    ),
    (
        chat(max_tokens=0),
        400,
        "max_tokens",
        "invalid_value",
        "Invalid value of 'max_tokens': 0; expected greater than or equal to 1.",
    ),
    (
        chat(max_tokens=600),
        400,
        "messages",
        "context_length_exceeded",
        "The context length of demo/7 is 512 tokens, and the request needs 618 (18 of the prompt, "
        "600 of the answer). Shorten one.",
    ),
    (
        chat(max_tokens=3, max_completion_tokens=4),
        400,
        "max_tokens",
        "invalid_value",
        "'max_tokens' and 'max_completion_tokens' differ; send one of them.",
    ),
    (chat(logprobs=5), 400, "logprobs", "invalid_value", "Invalid value of 'logprobs': 5; expected a valid boolean."),
    (chat(top_logprobs=2), 400, "top_logprobs", "invalid_value", "'top_logprobs' needs 'logprobs': true."),
    (
        chat(logprobs=True, top_logprobs=21),
        400,
        "top_logprobs",
        "invalid_value",
        "Invalid value of 'top_logprobs': 21; expected less than or equal to 20.",
    ),
    (
        chat(stream="yes"),
        400,
        "stream",
        "invalid_value",
        "Invalid value of 'stream': \"yes\"; expected a valid boolean.",
    ),
    (
        chat(stream_options={"include_usage": True}),
        400,
        "stream_options",
        "invalid_value",
        "'stream_options' needs 'stream': true.",
    ),
    (
        chat(stream=True, stream_options={"usage": True}),
        400,
        "stream_options.usage",
        "unknown_field",
        "Unknown field 'stream_options.usage'. Remove or correct it.",
    ),
    (
        chat(tools=[{"type": "retrieval"}]),
        400,
        "tools[0].type",
        "invalid_value",
        "Invalid value of 'tools[0].type': \"retrieval\"; expected 'function'.",
    ),
    (chat(tools=[ADD, ADD]), 400, "tools", "invalid_value", "'tools' has a name twice: add, add."),
    (
        chat(tool_choice="required"),
        400,
        "tool_choice",
        "invalid_value",
        "'tool_choice' is 'required', and there are no 'tools'.",
    ),
    (
        chat(tools=[ADD], tool_choice={"type": "function", "function": {"name": "sub"}}),
        400,
        "tool_choice",
        "invalid_value",
        "'tool_choice' names 'sub', and 'tools' has: add.",
    ),
    (
        chat(tool_choice="sometimes"),
        400,
        "tool_choice",
        "invalid_value",
        "Invalid value of 'tool_choice': \"sometimes\"; expected 'none', 'auto' or 'required', or an object.",
    ),
    (
        chat(response_format={"type": "xml"}),
        400,
        "response_format.type",
        "invalid_value",
        "Invalid value of 'response_format.type': \"xml\"; expected 'text', 'json_object' or 'json_schema'.",
    ),
    (
        chat(response_format={"type": "json_schema"}),
        400,
        "response_format",
        "invalid_value",
        "Invalid value of 'response_format': the type 'json_schema' needs the field 'json_schema', "
        "and the other types have none.",
    ),
    (
        chat(chat_template_kwargs={"chat_template": "x"}),
        400,
        "chat_template_kwargs.chat_template",
        "invalid_prompt",
        "chat_template_kwargs.chat_template is not a variable of this model's chat template, or "
        "the template sets it itself. It has none.",
    ),
    (
        chat(chat_template_kwargs=5),
        400,
        "chat_template_kwargs",
        "invalid_value",
        "Invalid value of 'chat_template_kwargs': 5; expected an object.",
    ),
    (chat(model="other"), 404, "model", "model_not_found", "Unknown model 'other'. Known: demo/7, demo@champion."),
    (chat(model=7), 400, "model", "invalid_value", "Invalid value of 'model': 7; expected a valid string."),
    (
        chat(reasoning_effort="high"),
        400,
        "reasoning_effort",
        "unsupported_field",
        "The field 'reasoning_effort' is not supported by this server. Remove it.",
    ),
    (
        chat(parallel_tool_calls=False),
        400,
        "parallel_tool_calls",
        "unsupported_field",
        "The field 'parallel_tool_calls' is not supported by this server. Remove it.",
    ),
]


@pytest.mark.parametrize(("request_", "status", "param", "code", "message"), CASES)
def test_a_bad_request_gets_its_exact_answer(server, request_, status, param, code, message):
    api_server.check_refusal(server, *request_, status, param, code, message)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 5),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("seed", 0),
        ("n", 2),
    ],
)
def test_a_field_that_the_engine_cannot_honor_is_named(server, name, value, stream):
    server.engine.unsupported = frozenset({name})
    path, body = chat(tools=[ADD], stream=stream, **{name: value})
    error = httpx.post(server.url + path, json=body).json()["error"]

    message = f"The engine scripted does not support {name!r}. Remove it, or serve with another engine."
    assert (error["param"], error["code"], error["message"]) == (name, "unsupported_field", message)
    assert server.engine.requests == []


def test_an_unknown_path_and_a_wrong_method_have_the_error_shape(server):
    unknown, wrong = httpx.get(f"{server.url}/load_model"), httpx.get(server.url + CHAT)

    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )


def test_an_invalid_grammar_is_an_error_of_the_request(server):
    server.engine.fail_after, server.engine.error = 0, ValueError("'minimum' must be a number")
    path, body = chat(response_format={"type": "json_object"}, stream=True)
    response = httpx.post(server.url + path, json=body)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    assert response.json()["error"]["message"] == "'minimum' must be a number."
