"""A promotion while clients stream answers of real engines through the real API: none fails, none mixes versions."""

import asyncio
from contextlib import asynccontextmanager

import openai
import pytest

from tests import tiny
from tuneline.config.sections.serve import ServeConfig
from tuneline.serve.api import server
from tuneline.serve.api.app import create_app
from tuneline.serve.deploy.deployment import RegistryDeployment
from tuneline.serve.run import api_settings

NUM_CLIENTS = 40
MESSAGES = [{"role": "user", "content": "What is one and two?"}]


@pytest.fixture
def versions(make_version, tmp_path, move):
    """Two versions with other weights; the first is champion."""
    models = [tiny.build_model(tmp_path / f"weights{seed}", seed=seed) for seed in (1, 2)]
    versions = [make_version(seed, model=model) for seed, model in enumerate(models, start=1)]
    move(versions[0])
    return versions


@asynccontextmanager
async def served(model):
    """Serve a model, followed every 50 ms; yields a client."""
    config = ServeConfig(model=model, port=0, follow=0.05)
    deployment = RegistryDeployment(config)
    await deployment.start()
    settings, connection = api_settings(config, {}), server.bind("127.0.0.1", 0)
    api_server = server.build_server(create_app(deployment, settings), settings)
    task = asyncio.create_task(api_server.serve(sockets=[connection]))
    url = f"{server.get_url(connection)}/v1"
    try:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            while not api_server.started:
                await asyncio.sleep(0.01)
            yield client
    finally:
        api_server.should_exit = True
        await task


async def stream(client):
    """Stream an answer; return the versions that its chunks name, and its text."""
    chunks = await client.chat.completions.create(
        model="", messages=MESSAGES, max_tokens=16, temperature=1, seed=7, stream=True
    )
    parts = [chunk async for chunk in chunks]
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    return {part.model for part in parts}, text


async def stream_until(stop, client, answers):
    while not stop.is_set():
        answers.append(await stream(client))


async def wait_for(answers, version):
    """Wait until a version answers."""
    async with asyncio.timeout(60):
        while not any(names == {version} for names, _ in answers[-NUM_CLIENTS:]):
            await asyncio.sleep(0.05)


def test_a_promotion_loses_and_mixes_no_answer(versions, move, name):
    expected, answers = {}, []

    async def main():
        for version in versions:
            async with served(f"{name}/{version.version}") as client:
                expected[f"{name}/{version.version}"] = (await stream(client))[1]
        async with served(f"{name}@champion") as client:
            stop = asyncio.Event()
            clients = [asyncio.create_task(stream_until(stop, client, answers)) for _ in range(NUM_CLIENTS)]
            for version in (*versions, versions[0]):
                move(version)
                await wait_for(answers, f"{name}/{version.version}")
            stop.set()
            await asyncio.gather(*clients)  # raises the error of a request that failed

    asyncio.run(main())

    assert len(set(expected.values())) == 2, "the versions answer differently"
    assert all(len(names) == 1 for names, _ in answers), "each answer names one version"
    assert all(text == expected[next(iter(names))] for names, text in answers)
    assert {next(iter(names)) for names, _ in answers} == expected.keys()
    assert len(answers) > 2 * NUM_CLIENTS
