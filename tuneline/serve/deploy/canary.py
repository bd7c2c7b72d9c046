"""Canary: fixed prompts that a version answers before it is served; this also warms it up."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tuneline import limits
from tuneline.errors import RecipeError, VerificationError
from tuneline.serve.deploy.interface import ServedVersion
from tuneline.serve.engines.interface import GenerationRequest, Sampling, Token

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colors.",
    "Translate 'good morning' into German.",
)
MIN_REPETITIONS = 4
"""Number of equal tokens after which an answer without any other token counts as a repetition."""

TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class CanaryResult:
    """What a version answered."""

    num_prompts: int
    num_tokens: int
    degenerate: dict[str, str] = field(default_factory=dict)
    """Prompt -> what is wrong with its answer: it is empty, or repeats one token."""

    def sentence(self) -> str:
        """Return the result in one sentence, without a period."""
        text = f"{self.num_prompts} canary prompts answered, {self.num_tokens} tokens"
        return f"{text}; {len(self.degenerate)} answers are degenerate" if self.degenerate else text


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """Return the prompts of a file, one per line, or the built-in ones.

    Raises:
        RecipeError: The file does not exist or has no prompt.
    """
    if path is None:
        return PROMPTS
    if not limits.is_file(path):
        raise RecipeError(f"canary_prompts: {limits.why_not_a_file(path)}. Set the path of a text file.")
    prompts = tuple(line for line in limits.read_text(path, limits.CONFIG_BYTES).splitlines() if line.strip())
    if not prompts:
        raise RecipeError(f"canary_prompts: {path} has no prompt. Write one prompt per line.")
    return prompts


async def run_canary(version: ServedVersion, prompts: Sequence[str], max_tokens: int) -> CanaryResult:
    """Send prompts to a version and check its answers.

    Raises:
        VerificationError: A log-probability or score is not finite, or an answer does not end within the limit.
    """
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            if version.is_reward_model:
                return await _score(version, prompts)
            answers = await asyncio.gather(*(_answer(version, prompt, max_tokens) for prompt in prompts))
    except TimeoutError as error:
        raise VerificationError(
            f"{version.name} did not answer the canary prompts within {TIMEOUT_SECONDS:.0f} seconds."
        ) from error
    reasons = {prompt: _degeneration(version, answer) for prompt, answer in zip(prompts, answers, strict=True)}
    degenerate = {prompt: reason for prompt, reason in reasons.items() if reason}
    return CanaryResult(len(prompts), sum(map(len, answers)), degenerate)


def check_not_worse(name: str, result: CanaryResult, served: CanaryResult | None) -> None:
    """Compare a version with the one that it replaces.

    Raises:
        VerificationError: More than half of its answers are degenerate, and the served version answers these prompts.
    """
    served_degenerate = served.degenerate if served else {}
    worse = {prompt: reason for prompt, reason in result.degenerate.items() if prompt not in served_degenerate}
    if 2 * len(worse) > result.num_prompts:
        prompt, reason = next(iter(worse.items()))
        raise VerificationError(
            f"{name} fails {len(worse)} of {result.num_prompts} canary prompts that the served version answers; its "
            f"answer to {prompt!r} {reason}."
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of a prompt, as one user message if the tokenizer has a chat template."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


async def _answer(version: ServedVersion, prompt: str, max_tokens: int) -> list[Token]:
    has_logprobs = "logprobs" not in version.engine.unsupported
    request = GenerationRequest(
        prompt_ids=encode_prompt(version.tokenizer, prompt),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0),
        stop_ids=version.stop_ids,
        top_logprobs=0 if has_logprobs else None,
        adapter=version.adapter,
    )
    tokens = [token async for token in version.engine.generate(request)]
    if bad := [token.logprob for token in tokens if token.logprob is not None and not math.isfinite(token.logprob)]:
        raise VerificationError(
            f"{version.name} answers the canary prompt {prompt!r} with a log-probability of {bad[0]}, expected finite "
            "numbers: its weights are damaged, or overflow in this data type."
        )
    if has_logprobs and any(token.logprob is None for token in tokens):
        raise VerificationError(f"{version.name}: the engine returned no log-probabilities for {prompt!r}.")
    if not tokens or tokens[-1].finish is None or len(tokens) > max_tokens:
        raise VerificationError(
            f"{version.name} answers the canary prompt {prompt!r} with {len(tokens)} tokens and no end, expected an "
            f"end within {max_tokens} tokens."
        )
    return tokens


def _degeneration(version: ServedVersion, tokens: list[Token]) -> str:
    """Return what is wrong with an answer, or an empty string."""
    ids = [token.id for token in tokens if token.id not in version.stop_ids]
    if not ids or not str(version.tokenizer.decode(ids, skip_special_tokens=True)).strip():
        return "is empty"
    if len(ids) >= MIN_REPETITIONS and len(set(ids)) == 1:
        return f"repeats the token {version.tokenizer.decode(ids[:1])!r}"
    return ""


async def _score(version: ServedVersion, prompts: Sequence[str]) -> CanaryResult:
    encoded = [encode_prompt(version.tokenizer, prompt) for prompt in prompts]
    scores = [await version.engine.score(ids) for ids in encoded]
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise VerificationError(f"{version.name} gives a canary prompt the score {bad[0]}, expected finite numbers.")
    return CanaryResult(len(prompts), sum(map(len, encoded)))
