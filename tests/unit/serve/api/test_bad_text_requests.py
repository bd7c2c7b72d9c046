"""Bad requests of completions, embeddings, scores and tokens, and their exact answers."""

import pytest

from tests import api_server

ADD = {"type": "function", "function": {"name": "add"}}


def complete(**fields):
    return "/v1/completions", {"prompt": "One", **fields}


# (path, body), status, param, code, message
CASES = [
    (
        complete(prompt=[]),
        400,
        "prompt",
        "invalid_value",
        "Invalid value of 'prompt': an empty list, expected at least one prompt.",
    ),
    (
        complete(prompt=[[]]),
        400,
        "prompt[0]",
        "invalid_value",
        "Invalid value of 'prompt[0]': []; expected a valid string, or a valid integer, or at least 1 item.",
    ),
    (
        complete(prompt=[-1]),
        400,
        "prompt[0]",
        "invalid_value",
        "Invalid value of 'prompt[0]': -1; expected a valid string, or greater than or equal to 0, or a valid array.",
    ),
    (
        complete(prompt=[9999]),
        400,
        "prompt",
        "invalid_value",
        "'prompt' has the token id 9999; the vocabulary has 308 tokens. Correct it.",
    ),
    (
        complete(prompt=""),
        400,
        "prompt",
        "invalid_prompt",
        "prompt is empty, and this model has no start token. Send at least one character.",
    ),
    (
        complete(prompt=["a", 1]),
        400,
        "prompt[1]",
        "invalid_value",
        "Invalid value of 'prompt[1]': 1; expected a valid string, or a valid array.",
    ),
    (
        complete(logprobs=True),
        400,
        "logprobs",
        "invalid_value",
        "Invalid value of 'logprobs': true; expected a valid integer.",
    ),
    (
        complete(echo=True),
        400,
        "echo",
        "unsupported_field",
        "The field 'echo' is not supported by this server. Remove it.",
    ),
    (
        complete(suffix="x"),
        400,
        "suffix",
        "unsupported_field",
        "The field 'suffix' is not supported by this server. Remove it.",
    ),
    (
        complete(messages=[{"role": "user", "content": "Hi"}]),
        400,
        "messages",
        "unknown_field",
        "Unknown field 'messages'. Remove or correct it.",
    ),
    (
        complete(prompt="x " * 600),
        400,
        "prompt",
        "context_length_exceeded",
        "The context length of demo/7 is 512 tokens, and the request needs 1216 (1200 of the "
        "prompt, 16 of the answer). Shorten one.",
    ),
    (
        complete(prompt=["a"] * 129),
        400,
        "prompt",
        "invalid_value",
        "The request needs 129 answers; at most 128 are allowed. Send fewer.",
    ),
    (
        ("/v1/embeddings", {"input": ""}),
        400,
        "input",
        "invalid_value",
        "Invalid value of 'input': an empty text or list, expected at least one token per text.",
    ),
    (
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
        400,
        "encoding_format",
        "invalid_value",
        "Invalid value of 'encoding_format': \"hex\"; expected 'float' or 'base64'.",
    ),
    (
        ("/v1/embeddings", {"input": "a", "dimensions": 3}),
        400,
        "dimensions",
        "unknown_field",
        "Unknown field 'dimensions'. Remove or correct it.",
    ),
    (
        ("/v1/score", {"messages": [{"role": "user", "content": "Hi"}]}),
        400,
        "model",
        "unsupported_model",
        "demo/7 is not a reward model, so it has no scores. Name a reward model.",
    ),
    (
        ("/v1/score", {}),
        400,
        "messages",
        "invalid_value",
        "Send either 'messages' (one conversation) or 'input' (texts or conversations).",
    ),
    (
        ("/v1/score/evaluation", {"messages": [{"a": 1}]}),
        400,
        "messages[0]",
        "invalid_value",
        "Invalid value of 'messages[0]': {\"a\":1}; expected a valid string.",
    ),
    (("/v1/tokenize", {}), 400, "text", "invalid_value", "Send either 'text' or 'messages'."),
    (
        ("/v1/tokenize", {"text": "a", "tools": [ADD]}),
        400,
        "tools",
        "invalid_value",
        "'tools' and 'chat_template_kwargs' need 'messages'.",
    ),
]


@pytest.mark.parametrize(("request_", "status", "param", "code", "message"), CASES)
def test_a_bad_request_gets_its_exact_answer(server, request_, status, param, code, message):
    api_server.check_refusal(server, *request_, status, param, code, message)
