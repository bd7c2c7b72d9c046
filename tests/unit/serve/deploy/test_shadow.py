"""The challenger answers a share of requests in the background; its answers are only written to a file."""

import asyncio
import json

import pytest

from tests import tiny
from tuneline import state
from tuneline.serve.deploy.shadow import Shadow
from tuneline.serve.engines.interface import EngineFailedError, GenerationRequest

REQUEST = GenerationRequest(prompt_ids=[5, 6], max_tokens=8)


@pytest.fixture
def versions(make_version, move, factory):
    """A champion and a challenger with other answers."""
    champion, challenger = make_version(1), make_version(2)
    factory.scripts[challenger.folder()] = {"ids": [80, 81, 82]}
    move(champion)
    move(challenger, "challenger")
    return champion, challenger


async def answer(deployment, model="", request=REQUEST):
    async with deployment.acquire(model) as version:
        return version.name, [token.id async for token in version.engine.generate(request)]


def lines(name):
    path = state.root() / "shadow" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_both_answers_are_written_and_the_client_gets_that_of_the_champion(versions, make_deployment, name):
    async def main():
        deployment = make_deployment(name, shadow=1)
        await deployment.start()
        await deployment.refresh()
        assert await answer(deployment) == (f"{name}/1", [70, 71, 72, 73])
        await deployment._shadow.wait()
        assert {entry.resolved for entry in deployment.models()} == {f"{name}/1"}, "the challenger is not listed"
        await deployment.close()

    asyncio.run(main())

    (line,) = lines(name)
    assert line["prompt_ids"] == [5, 6]
    assert line["served"].items() >= {"version": f"{name}/1", "ids": [70, 71, 72, 73], "finish": "stop"}.items()
    assert line["challenger"].items() >= {"version": f"{name}/2", "ids": [80, 81, 82], "finish": "stop"}.items()
    assert line["served"]["text"] != line["challenger"]["text"]
    assert line["challenger"]["seconds"] >= 0


def test_about_the_share_of_requests_is_compared(versions, make_deployment, name):
    async def main():
        deployment = make_deployment(name, shadow=0.25)
        await deployment.start()
        await deployment.refresh()
        for _ in range(200):
            await answer(deployment)
        await deployment._shadow.wait()
        await deployment.close()

    asyncio.run(main())
    assert 20 < len(lines(name)) < 80


def test_a_challenger_that_fails_or_is_slow_affects_no_answer(versions, make_deployment, factory, name, caplog):
    async def main():
        deployment = make_deployment(name, shadow=1)
        await deployment.start()
        await deployment.refresh()
        challenger = factory.made[1]

        async def fail(request):
            raise EngineFailedError("it died")
            yield

        challenger.generate = fail
        assert (await answer(deployment))[1] == [70, 71, 72, 73]
        await deployment._shadow.wait()
        del challenger.generate
        challenger.delay = 100
        async with asyncio.timeout(2):
            for _ in range(20):
                assert (await answer(deployment))[1] == [70, 71, 72, 73]
            await deployment.close()

    asyncio.run(main())
    assert "did not answer a shadow request: it died" in caplog.text
    assert lines(name) == []


def test_a_request_interrupts_the_challenger(versions, make_deployment, factory, name):
    async def main():
        deployment = make_deployment(name, shadow=1)
        await deployment.start()
        await deployment.refresh()
        served, challenger = factory.made
        challenger.delay, challenger.requests = 0.02, []
        await answer(deployment)
        while not challenger.running:
            await asyncio.sleep(0.001)
        served.running += 1
        await asyncio.sleep(0.1)
        assert not challenger.running
        served.running -= 1
        await deployment._shadow.wait()
        assert len(challenger.requests) == 2, "it starts again"
        await deployment.close()

    asyncio.run(main())
    assert len(lines(name)) == 1


def test_a_full_file_ends_the_comparison(versions, make_deployment, name, caplog):
    async def main():
        deployment = make_deployment(name, shadow=1, shadow_bytes=1000)
        await deployment.start()
        await deployment.refresh()
        for _ in range(10):
            await answer(deployment)
            await deployment._shadow.wait()
        await deployment.close()

    asyncio.run(main())
    path = state.root() / "shadow" / f"{name}.jsonl"
    assert 0 < path.stat().st_size <= 1000
    assert caplog.text.count("the comparison with the challenger ends") == 1


def test_a_challenger_with_another_template_is_not_compared(make_version, move, make_deployment, name, caplog):
    move(make_version(1))
    move(make_version(2, template=tiny.CHATML.replace("user", "human") + " "), "challenger")

    async def main():
        deployment = make_deployment(name, shadow=1)
        await deployment.start()
        await deployment.refresh()
        assert deployment._shadow.challenger is None
        await deployment.close()

    asyncio.run(main())
    assert "has another tokenizer or chat template" in caplog.text


def test_a_challenger_that_becomes_champion_is_no_longer_compared(versions, move, make_deployment, factory, name):
    async def main():
        deployment = make_deployment(name, shadow=1)
        await deployment.start()
        await deployment.refresh()
        move(versions[1])
        await deployment.refresh()
        assert (await answer(deployment))[0] == f"{name}/2"
        assert deployment._shadow.challenger is None
        await deployment.close()

    asyncio.run(main())
    assert not factory.open
    assert lines(name) == []


def test_requests_with_an_adapter_are_not_selected(home):
    shadow = Shadow("m", 1.0, 1000)
    shadow.challenger = object()

    assert shadow.selects(REQUEST)
    assert not shadow.selects(GenerationRequest(prompt_ids=[1], max_tokens=1, adapter="poet"))
