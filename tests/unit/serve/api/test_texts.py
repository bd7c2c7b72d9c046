"""Embeddings, scores and tokens."""

import base64
import json
import struct

import httpx2 as httpx
import openai
import pytest

from tests import api_server
from tuneline.serve.answers import prompts

MESSAGES = [{"role": "user", "content": "What is one and two?"}]
ANSWERED = [*MESSAGES, {"role": "assistant", "content": "Three."}]


@pytest.fixture(scope="module")
def reward(tokenizer):
    with api_server.serve(tokenizer, reward=True, max_inputs=4) as server:
        yield server


def post(server, path, **body):
    return httpx.post(server.url + path, json=body)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_embeddings_of_texts(server, client, tokenizer):
    answer = client.embeddings.create(model="demo@champion", input=["One", "One and two"], encoding_format="float")

    lengths = [len(encode(tokenizer, text)) for text in ("One", "One and two")]
    assert [item.embedding for item in answer.data] == [[length, 0.25, -0.5] for length in lengths]
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens) == ("demo/7", sum(lengths))


@pytest.mark.parametrize(("sent", "lengths"), [([40, 41], [2]), ([[40], [41, 42, 43]], [1, 3])])
def test_embeddings_of_token_ids(server, client, sent, lengths):
    answer = client.embeddings.create(model="", input=sent, encoding_format="float")

    assert [item.embedding[0] for item in answer.data] == lengths


def test_the_default_format_of_the_client_library_is_base64(server, client):
    assert client.embeddings.create(model="", input=[40, 41]).data[0].embedding == [2.0, 0.25, -0.5]


def test_base64_is_little_endian_float32(server):
    data = post(server, "/v1/embeddings", input=[40, 41], encoding_format="base64").json()["data"][0]["embedding"]

    assert struct.unpack("<3f", base64.b64decode(data)) == (2.0, 0.25, -0.5)


def test_an_engine_without_embeddings_says_so(server):
    server.engine.unsupported = frozenset({"embeddings"})
    error = post(server, "/v1/embeddings", input="One").json()["error"]

    assert (error["param"], error["code"]) == ("model", "unsupported_model")


def test_a_conversation_is_scored_as_it_is_trained(reward, tokenizer):
    answer = post(reward, "/v1/score", model="demo@champion", messages=ANSWERED).json()

    ids = [*prompts.encode_chat(tokenizer, MESSAGES), *encode(tokenizer, "Three."), tokenizer.eos_token_id]
    assert answer["scores"] == [len(ids)]
    assert (answer["object"], answer["model"], answer["system_fingerprint"]) == ("score", "demo/7", "fp_1234")
    assert answer["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}


def test_texts_and_conversations_are_scored_in_their_order(reward, tokenizer):
    texts = post(reward, "/v1/score", input=["One", "One and two"]).json()["scores"]
    longer = [*MESSAGES, {"role": "assistant", "content": "It is three, or four."}]
    conversations = post(reward, "/v1/score", input=[longer, ANSWERED]).json()["scores"]

    assert texts == [len(encode(tokenizer, "One")), len(encode(tokenizer, "One and two"))]
    assert conversations[0] > conversations[1]


@pytest.mark.parametrize("messages", [MESSAGES, ANSWERED[1:]])
def test_a_conversation_without_prompt_or_answer_has_no_score(reward, messages):
    error = post(reward, "/v1/score", messages=messages).json()["error"]

    assert (error["param"], error["code"]) == ("messages", "invalid_value")


def test_the_route_of_llamafactory_scores_rendered_texts(reward, tokenizer):
    texts = ["<|im_start|>user\nOne<|im_end|>\n", "One and two"]
    answer = post(reward, "/v1/score/evaluation", model="demo", messages=texts, max_length=4)
    assert answer.status_code == 404

    answer = post(reward, "/v1/score/evaluation", messages=texts, max_length=4).json()
    assert answer["scores"] == [4, min(4, len(encode(tokenizer, texts[1])))]
    assert (answer["object"], answer["model"]) == ("score.evaluation", "demo/7")
    assert answer["id"].startswith("scoreval-")


def test_a_reward_model_does_not_chat(reward):
    error = post(reward, "/v1/chat/completions", messages=MESSAGES).json()["error"]

    assert error["message"] == "demo/7 is a reward model: it does not generate text. Use /v1/score."


def test_too_many_texts_are_refused(reward):
    error = post(reward, "/v1/score", input=["One"] * 5).json()["error"]

    assert error["message"] == "'input' has 5 texts; at most 4 are allowed. Send fewer."


def test_the_failure_of_one_text_is_the_failure_of_the_request(reward, monkeypatch):
    async def fail(ids):
        raise api_server.EngineFailedError("The engine died.")

    monkeypatch.setattr(reward.engine, "score", fail)
    response = post(reward, "/v1/score", input=["One", "Two"])

    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")


def test_tokens_of_a_text(server, tokenizer):
    answer = post(server, "/v1/tokenize", text="One and two", return_token_strings=True).json()

    ids = encode(tokenizer, "One and two")
    assert (answer["ids"], answer["count"], answer["max_length"]) == (ids, len(ids), 512)
    assert answer["tokens"] == tokenizer.convert_ids_to_tokens(ids)


def test_tokens_of_messages_are_those_of_a_chat(server, client):
    client.chat.completions.create(model="", messages=MESSAGES)
    answer = post(server, "/v1/tokenize", messages=MESSAGES).json()

    assert answer["ids"] == server.engine.requests[0].prompt_ids
    assert "tokens" not in answer


def test_a_long_text_is_encoded_as_a_short_one(server, tokenizer):
    text = "One and two. " * 3000

    assert post(server, "/v1/tokenize", text=text).json()["ids"] == encode(tokenizer, text)


def test_the_models_are_listed_with_their_versions(server, client):
    models = client.models.list().data

    assert [(model.id, model.resolved) for model in models] == [("demo@champion", "demo/7"), ("demo/7", "demo/7")]
    assert client.models.retrieve("demo/7").created == 1_700_000_000
    with pytest.raises(openai.NotFoundError, match="Served models: demo/7, demo@champion"):
        client.models.retrieve("demo/8")


def test_the_openapi_document_describes_the_bodies(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = {reference.split('"')[0] for reference in json.dumps(document).split("#/components/schemas/")[1:]}

    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    assert names <= document["components"]["schemas"].keys()
    assert "temperature" in document["components"]["schemas"]["ChatRequest"]["properties"]
