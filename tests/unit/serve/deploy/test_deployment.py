"""A deployment follows its alias: requests keep their version, and a version that fails is not served."""

import asyncio
from collections import Counter

import pytest
from mlflow import MlflowClient

from tests.unit.serve.deploy.scripted import NAN
from tuneline.errors import NotFoundError, SourceError, VerificationError
from tuneline.serve.deploy.deployment import VersionAwayError
from tuneline.serve.deploy.interface import UnknownModelError
from tuneline.serve.engines.interface import EngineFailedError, GenerationRequest
from tuneline.tracking import ledger

REQUEST = GenerationRequest(prompt_ids=[5, 6], max_tokens=8)


async def answer(deployment, model=""):
    """Send a request; return the version's name, the ids, and the name after the answer."""
    async with deployment.acquire(model) as version:
        ids = [token.id async for token in version.engine.generate(REQUEST)]
        return version.name, tuple(ids)


def test_names_resolve_to_the_version_of_the_alias(make_version, move, make_deployment, name):
    move(make_version(1))

    async def main():
        deployment = make_deployment(name, served_names=["gpt-4o"])
        await deployment.start()
        for model in ("", name, f"{name}@champion", f"{name}/1", f"models:/{name}/1", "gpt-4o"):
            assert (await answer(deployment, model))[0] == f"{name}/1"
        entries = {entry.id: entry.resolved for entry in deployment.models()}
        assert entries == dict.fromkeys([f"{name}@champion", name, f"{name}/1", "gpt-4o"], f"{name}/1")
        assert deployment.is_ready()
        await deployment.close()
        assert not deployment.is_ready()

    asyncio.run(main())


@pytest.mark.parametrize("model", ["other", "other@champion", "{name}@challenger", "{name}/2", "../etc"])
def test_a_name_that_is_not_served_is_refused_with_the_served_names(make_version, move, make_deployment, name, model):
    move(make_version(1))

    async def main():
        deployment = make_deployment(f"{name}@champion")
        await deployment.start()
        with pytest.raises(UnknownModelError, match=f"Known: .*{name}/1") as caught:
            await answer(deployment, model.format(name=name))
        assert "\n" not in str(caught.value)
        await deployment.close()

    asyncio.run(main())


def test_a_fixed_version_does_not_claim_to_be_the_champion(make_version, move, make_deployment, name):
    first, second = make_version(1), make_version(2)
    move(second)

    async def main():
        deployment = make_deployment(f"{name}/{first.version}")
        await deployment.start()
        await deployment.refresh()
        assert [entry.id for entry in deployment.models()] == [f"{name}/1"]
        await deployment.close()

    asyncio.run(main())


def test_requests_under_load_neither_fail_nor_mix_versions_while_the_alias_moves(
    make_version, move, make_deployment, factory, name
):
    versions = [make_version(number) for number in range(1, 5)]
    for number, version in enumerate(versions, start=1):
        factory.scripts[version.folder()] = {"ids": [70 + number, 80 + number, 90 + number], "delay": 0.002}
    move(versions[0])
    answers = []

    async def client(deployment, stop):
        while not stop.is_set():
            answers.append(await answer(deployment, name))

    async def main():
        deployment, stop = make_deployment(name, swap="beside"), asyncio.Event()
        await deployment.start()
        clients = [asyncio.create_task(client(deployment, stop)) for _ in range(50)]
        for version in versions[1:]:
            move(version)
            await deployment.refresh()
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*clients)
        assert len(factory.open) == 1
        await deployment.close()

    asyncio.run(main())

    expected = {f"{name}/{number}": (70 + number, 80 + number, 90 + number) for number in range(1, 5)}
    assert dict(answers) == expected
    assert all(expected[version] == ids for version, ids in answers)
    assert min(Counter(version for version, _ in answers).values()) >= 50
    assert not factory.open


def test_the_registry_is_followed_in_the_background(make_version, move, make_deployment, name):
    first, second = make_version(1), make_version(2)
    move(first)

    async def main():
        deployment = make_deployment(name, follow=0.02)
        await deployment.start()
        move(second)
        async with asyncio.timeout(10):
            while (await answer(deployment))[0] != f"{name}/2":
                await asyncio.sleep(0.01)
        await deployment.close()

    asyncio.run(main())


def test_a_request_that_began_on_the_old_version_finishes_on_it(make_version, move, make_deployment, factory, name):
    first, second = make_version(1), make_version(2)
    move(first)

    async def main():
        deployment = make_deployment(name)
        await deployment.start()
        async with deployment.acquire(name) as version:
            stream = version.engine.generate(REQUEST)
            ids = [(await anext(stream)).id]
            move(second)
            await deployment.refresh()
            assert (await answer(deployment, name))[0] == f"{name}/2"
            assert not factory.made[0].closed
            ids += [token.id async for token in stream]
            assert (version.name, ids) == (f"{name}/1", [70, 71, 72, 73])
        while not factory.made[0].closed:
            await asyncio.sleep(0.001)
        await deployment.close()

    asyncio.run(main())


def test_a_drain_ends_after_its_limit(make_version, move, make_deployment, factory, name, caplog):
    first, second = make_version(1), make_version(2)
    move(first)

    async def main():
        deployment = make_deployment(name, drain_seconds=0.01)
        await deployment.start()
        async with deployment.acquire(name) as version:
            move(second)
            await deployment.refresh()
            while not factory.made[0].closed:
                await asyncio.sleep(0.001)
            with pytest.raises(EngineFailedError):
                _ = [token async for token in version.engine.generate(REQUEST)]
        await deployment.close()

    asyncio.run(main())
    assert "1 requests did not finish within 0.01 seconds" in caplog.text


FAILURES = {
    "not finite": ({"logprob": NAN}, "log-probability of nan"),
    "repeats": ({"ids": [70] * 16}, "repeats the token"),
    "empty": ({"ids": [2]}, "is empty"),
    "no end": ({"ends": False}, "no end"),
    "cannot be loaded": ({"error": SourceError("the weights are damaged.")}, "the weights are damaged"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_version_that_fails_is_not_served_and_recorded_once(
    make_version, move, make_deployment, factory, name, failure
):
    first, second = make_version(1), make_version(2)
    script, reason = FAILURES[failure]
    factory.scripts[second.folder()] = script
    move(first)

    async def main():
        deployment = make_deployment(name)
        await deployment.start()
        move(second)
        for _ in range(3):
            await deployment.refresh()
        assert (await answer(deployment, name))[0] == f"{name}/1"
        assert len(factory.open) == 1
        move(first)
        await deployment.refresh()
        move(second)
        await deployment.refresh()
        await deployment.close()

    asyncio.run(main())

    lines = ledger.entries(name)
    assert len(lines) == 2, "once per move of the alias"
    assert all(line["event"] == "serving_rejected" and reason in line["why"] for line in lines)
    assert (lines[0]["alias"], lines[0]["to"], lines[0]["serving"]) == ("champion", "2", "1")
    assert ledger.verify() == 2


def test_a_version_with_another_template_than_its_training_is_not_served(make_version, move, make_deployment, name):
    first, second = make_version(1), make_version(2)
    move(first)

    def verify(served, located):
        if located.version.version == "2":
            raise VerificationError("the ids differ at position 3.")
        return "same ids"

    async def main():
        deployment = make_deployment(name, verify=verify)
        assert (await deployment.start()).parity == "same ids"
        move(second)
        await deployment.refresh()
        assert (await answer(deployment, name))[0] == f"{name}/1"
        await deployment.close()

    asyncio.run(main())
    assert "the ids differ at position 3" in ledger.entries(name)[0]["why"]


def test_a_version_whose_files_changed_is_not_served(make_version, move, make_deployment, name):
    first, second = make_version(1), make_version(2)
    (second.folder() / "config.json").write_text("{}")
    move(first)

    async def main():
        deployment = make_deployment(name)
        await deployment.start()
        move(second)
        await deployment.refresh()
        assert (await answer(deployment))[0] == f"{name}/1"
        await deployment.close()

    asyncio.run(main())
    assert "config.json has the sha256" in ledger.entries(name)[0]["why"]


def test_a_first_version_that_fails_stops_the_start(make_version, move, make_deployment, factory, name):
    factory.script = {"logprob": NAN}
    move(make_version(1))

    async def main():
        with pytest.raises(VerificationError, match="log-probability of nan") as caught:
            await make_deployment(name).start()
        assert "\n" not in str(caught.value)

    asyncio.run(main())
    assert factory.made
    assert not factory.open
    assert ledger.entries(name) == []


def test_a_first_version_with_degenerate_answers_is_served_with_a_warning(
    make_version, move, make_deployment, factory, name, caplog
):
    factory.script = {"ids": [70] * 16}
    move(make_version(1))

    async def main():
        deployment = make_deployment(name)
        await deployment.start()
        move(make_version(2))
        await deployment.refresh()
        assert (await answer(deployment))[0] == f"{name}/2", "it is not worse than the version before"
        await deployment.close()

    asyncio.run(main())
    assert "repeats the token" in caplog.text


def test_a_version_that_does_not_fit_beside_the_served_one_is_refused(
    make_version, move, make_deployment, factory, name, caplog
):
    first, second = make_version(1), make_version(2)
    move(first)

    async def main():
        deployment = make_deployment(name, available=lambda: 1 << 20 if factory.made else 1 << 40)
        await deployment.start()
        move(second)
        await deployment.refresh()
        assert (await answer(deployment))[0] == f"{name}/1"
        await deployment.close()

    asyncio.run(main())
    assert f"{name}/2 needs about 0.06 GiB beside the served version, and 0.00 GiB is free" in caplog.text
    assert "--swap restart" in ledger.entries(name)[0]["why"]


def test_a_restart_reports_how_long_the_model_was_away(make_version, move, make_deployment, factory, name, caplog):
    first, second = make_version(1), make_version(2)
    move(first)
    states = []

    async def main():
        deployment = make_deployment(name, available=lambda: 0, swap="restart")

        def watch(spec):
            if factory.made:
                states.append((deployment.is_ready(), deployment.models(), len(factory.open)))
                with pytest.raises(VersionAwayError, match="is not loaded at the moment"):
                    _ = deployment.current
            return factory(spec)

        object.__setattr__(deployment._preparation, "make_engine", watch)
        await deployment.start()
        async with deployment.acquire("") as version:
            move(second)
            switch = asyncio.create_task(deployment.refresh())
            await asyncio.sleep(0.1)
            with pytest.raises(VersionAwayError):
                await answer(deployment)
            assert [token.id async for token in version.engine.generate(REQUEST)] == [70, 71, 72, 73]
        await switch
        assert (await answer(deployment))[0] == f"{name}/2"
        assert deployment.away_seconds > 0.05
        await deployment.close()

    asyncio.run(main())
    assert states == [(False, [], 0)], "the old version is closed before the new one is loaded"
    assert f"Serving {name}/2 after 0." in caplog.text


def test_a_failed_restart_loads_the_old_version_again(make_version, move, make_deployment, factory, name):
    first, second = make_version(1), make_version(2)
    factory.scripts[second.folder()] = {"logprob": NAN}
    move(first)

    async def main():
        deployment = make_deployment(name, available=lambda: 0, swap="restart")
        await deployment.start()
        move(second)
        await deployment.refresh()
        assert (await answer(deployment))[0] == f"{name}/1"
        assert len(factory.open) == 1
        await deployment.close()

    asyncio.run(main())
    assert len(ledger.entries(name)) == 1


def test_an_alias_that_is_removed_keeps_the_version(make_version, move, make_deployment, name, caplog):
    move(make_version(1))

    async def main():
        deployment = make_deployment(name)
        await deployment.start()
        MlflowClient().delete_registered_model_alias(name, "champion")
        await deployment.refresh()
        await deployment.refresh()
        assert (await answer(deployment))[0] == f"{name}/1"
        await deployment.close()

    asyncio.run(main())
    assert caplog.text.count("Still serving 1") <= 2


def test_a_registry_that_fails_delays_no_request(make_version, move, make_deployment, name, monkeypatch, caplog):
    from tuneline.tracking import registry

    move(make_version(1))

    def fail(*_):
        raise OSError("the database is locked")

    async def main():
        deployment = make_deployment(name, follow=0.01)
        await deployment.start()
        monkeypatch.setattr(registry, "find_version", fail)
        await asyncio.sleep(0.1)
        assert (await answer(deployment))[0] == f"{name}/1"
        await deployment.close()

    asyncio.run(main())
    assert caplog.text.count("the database is locked") == 1


def test_a_model_that_is_not_registered_is_refused(make_version, make_deployment, name):
    make_version(1)

    async def main():
        with pytest.raises(NotFoundError, match="Unknown version of .* 'champion'. Known: 1."):
            await make_deployment(name).start()
        with pytest.raises(NotFoundError, match="Unknown model 'nothing'"):
            await make_deployment("nothing").start()

    asyncio.run(main())


def test_fingerprints_differ_between_versions_and_are_stable(make_version, make_deployment, name):
    make_version(1), make_version(2)

    async def fingerprint(model):
        deployment = make_deployment(model)
        loaded = await deployment.start()
        await deployment.close()
        return loaded.served.fingerprint, loaded.served.stop_ids

    first, again, second = (asyncio.run(fingerprint(f"{name}/{number}")) for number in (1, 1, 2))
    assert first == again
    assert first[0].startswith("fp_")
    assert first[0] != second[0]
    assert first[1] == (2,)
