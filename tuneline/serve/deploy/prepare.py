"""Prepare a version for requests: load it, compare its chat template with training, warm it up, send the canary."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.serve import ServeConfig
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.identity import digest
from tuneline.serve.deploy import canary, engine_factory, parity_check
from tuneline.serve.deploy.canary import CanaryResult
from tuneline.serve.deploy.engine_factory import EngineFactory, EngineSpec
from tuneline.serve.deploy.interface import RequestDefaults, ServedVersion
from tuneline.serve.deploy.loaded import LoadedVersion
from tuneline.serve.deploy.located import LocatedModel
from tuneline.serve.engines.interface import Engine

logger = logging.getLogger(__name__)

FINGERPRINT_LENGTH = 16
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Sampling parameters of a generation config that become defaults of requests."""

Verify = Callable[[ServedVersion, LocatedModel], str]
"""Compares the chat template of a version with its training; returns the result in one sentence, or raises."""


@dataclass(frozen=True)
class Preparation:
    """Turns located models into loaded versions."""

    config: ServeConfig
    make_engine: EngineFactory = engine_factory.make_engine
    verify: Verify = parity_check.verify

    def load(self, located: LocatedModel) -> tuple[ServedVersion, str]:
        """Load a model and compare its chat template with training; returns the version and the result as a sentence.

        Raises:
            TunelineError: The model cannot be loaded, or the templates differ.
        """
        tokenizer = load_tokenizer_from(located.tokenizer_folder or located.folder)
        spec = EngineSpec(located.folder, tokenizer, self.config, located.adapters, located.gguf)
        engine = self.make_engine(spec)
        try:
            served = _served_version(located, tokenizer, engine, self.config)
            return served, self.verify(served, located)
        except BaseException:
            engine.close()
            raise

    async def check(self, served: ServedVersion) -> CanaryResult:
        """Warm a version up with the canary prompts, and check its answers and those of its adapters.

        Raises:
            VerificationError: An answer is not valid.
        """
        prompts = canary.read_prompts(self.config.canary_prompts)
        return await canary.run_canary(served, prompts, self.config.canary_tokens)

    async def prepare(
        self, located: LocatedModel, previous: CanaryResult | None = None, *, in_thread: bool = True
    ) -> LoadedVersion:
        """Load and check a version.

        Args:
            located: The model.
            previous: Canary answers of the version that it replaces.
            in_thread: Load in a thread, so that the event loop continues.

        Raises:
            TunelineError: The version must not be served; its memory is free again.
        """
        served, parity = await self._load_in_thread(located) if in_thread else self.load(located)
        try:
            result = await self.check(served)
            if previous is not None:
                canary.check_not_worse(served.name, result, previous)
            loaded = LoadedVersion(located, served, parity, result)
            await self._check_adapters(loaded)
            return loaded
        except BaseException:
            await asyncio.to_thread(served.engine.close)
            raise

    async def _load_in_thread(self, located: LocatedModel) -> tuple[ServedVersion, str]:
        """Load a model in a thread; if the task is cancelled meanwhile, the engine is closed after it is loaded."""
        cancelled = threading.Event()

        def load() -> tuple[ServedVersion, str]:
            served, parity = self.load(located)
            if cancelled.is_set():
                served.engine.close()
            return served, parity

        try:
            return await asyncio.to_thread(load)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def _check_adapters(self, loaded: LoadedVersion) -> None:
        """Send one canary prompt to each adapter."""
        if not loaded.served.is_reward_model:
            prompts: Sequence[str] = canary.read_prompts(self.config.canary_prompts)[:1]
            for name in loaded.located.adapters:
                await canary.run_canary(loaded.with_adapter(name), prompts, self.config.canary_tokens)


def _served_version(
    located: LocatedModel, tokenizer: PreTrainedTokenizerBase, engine: Engine, config: ServeConfig
) -> ServedVersion:
    name = located.base_name or located.name
    return ServedVersion(
        name=name,
        folder=located.folder,
        tokenizer=tokenizer,
        engine=engine,
        fingerprint=fingerprint(located.content_hash, engine),
        stop_ids=stop_ids(located.folder, tokenizer),
        is_reward_model=located.is_reward_model,
        defaults=request_defaults(located.folder, config),
    )


def fingerprint(content_hash: str, engine: Engine) -> str:
    """Return the `system_fingerprint`: content hash, engine and versions."""
    return f"fp_{digest([content_hash, engine_factory.engine_versions(engine)])[:FINGERPRINT_LENGTH]}"


def request_defaults(folder: Path, config: ServeConfig) -> RequestDefaults:
    """Return the values of fields that a request omits: those of the settings, else of the generation config."""
    stored = _generation_config(folder)
    own = config.generation.model_dump(exclude={"max_tokens"}, exclude_none=True)
    sampling = {name: stored[name] for name in SAMPLING_KEYS if isinstance(stored.get(name), int | float)} | own
    return RequestDefaults(sampling, config.generation.max_tokens, config.system, dict(config.chat_template_kwargs))


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, and the tokenizer's end token."""
    stored = _generation_config(folder).get("eos_token_id")
    ids = stored if isinstance(stored, list) else [stored] if stored is not None else []
    end = tokenizer.eos_token_id
    return tuple(dict.fromkeys([*ids, *([end] if isinstance(end, int) else [])]))
