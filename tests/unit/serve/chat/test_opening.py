"""Models of chats: loaded as the server loads them, and their base models."""

import asyncio
import json

import pytest

from tests import tiny
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import RecipeError
from tuneline.serve.chat import opening
from tuneline.serve.chat.interface import Answer
from tuneline.serve.chat.session import receive


def read_config(model):
    return ServeConfig(model=model, system="Be brief." if "system" in model else None)


async def answer_of(client, session):
    answer = Answer()
    await receive(client, session.request(), answer, lambda delta: None)
    return answer


def test_a_folder_answers_with_its_name_as_version(tiny_model, home):
    async def run():
        session = await opening.open_local(str(tiny_model), read_config)
        session.options |= {"max_tokens": 5, "temperature": 0}
        session.conversation.add_user("Hello")
        try:
            with pytest.raises(RecipeError, match="base model of model is not recorded. Name it: /compare MODEL"):
                await session.compare("")
            return await answer_of(session.client, session)
        finally:
            await session.close()

    answer = asyncio.run(run())
    assert (answer.version, answer.num_tokens, answer.finish) == (tiny_model.name, 5, "length")


def test_an_adapter_and_its_base_share_the_weights(tiny_model, tmp_path, home):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = tmp_path / "poet"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules="all-linear"))
    model.save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(tiny_model)}))

    async def run():
        session = await opening.open_local(str(adapter), read_config)
        session.options |= {"max_tokens": 3, "temperature": 0}
        session.conversation.add_user("Hello")
        await session.compare("")
        first, second = await answer_of(session.client, session), await answer_of(session.other, session)
        await session.end_comparison()
        third = await answer_of(session.client, session)
        await session.close()
        return first, second, third

    first, second, third = asyncio.run(run())
    assert (first.version, second.version) == ("poet", tiny_model.name)
    assert third.num_tokens == 3, "the end of the comparison does not stop the engine"


def test_a_reward_model_is_refused(tmp_path, home):
    from tuneline.model import value_head

    folder = tiny.build_model(tmp_path / "judge")
    (folder / value_head.HEAD_FILE).write_bytes((folder / "model.safetensors").read_bytes())

    with pytest.raises(RecipeError, match="judge is a reward model"):
        opening.locate(ServeConfig(model=str(folder)))
