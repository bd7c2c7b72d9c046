"""The engine `transformers`: a decode loop in a thread of this process, with continuous batching."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.model import value_head
from tuneline.model.load import load_model
from tuneline.model.value_head import ValueHead
from tuneline.serve.engines import constraint
from tuneline.serve.engines.interface import EngineFailedError, EngineLoad, GenerationRequest, Grammar, Token
from tuneline.serve.engines.transformers.batch import Batch, Slot, verify_batching
from tuneline.serve.engines.transformers.sampler import Constraint, Sampler

MAX_BATCH_SIZE = 32
MAX_PREFILL_TOKENS = 1024
"""Tokens, with padding, of the prompts that are computed together."""

logger = logging.getLogger(__name__)

MakeConstraint = Callable[[Grammar], Constraint]


class TransformersEngine:
    """Generates tokens with a model in this process."""

    name = "transformers"
    unsupported: frozenset[str] = frozenset()

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_length: int | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        adapters: tuple[str, ...] = (),
        make_constraint: MakeConstraint | None = None,
        head: ValueHead | None = None,
    ) -> None:
        """Start the decode loop.

        Args:
            model: Causal language model in evaluation mode; a PeftModel if there are adapters.
            max_length: Maximum number of tokens of prompt and answer; by default the context of the model.
            max_batch_size: Maximum number of answers at the same time; further requests wait.
            adapters: Names of the adapters of the PeftModel that requests can select.
            make_constraint: Compiles a grammar; without it, requests with a grammar are refused.
            head: Value head of a reward model.
        """
        self._model, self._max_batch_size = model.eval(), max_batch_size
        self.max_length = max_length or context_length(model)
        self.adapters = adapters
        self._make_constraint, self._head = make_constraint, head
        with self._select(None):
            self._together = max_batch_size > 1 and verify_batching(model)
        self._waiting: deque[Slot] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._batches: dict[str | None, Batch] = {}
        self._prefilling: Slot | None = None
        self._wake, self._closed = threading.Condition(), False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="decode loop", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype = torch.float32,
        adapters: Mapping[str, Path] | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_length: int | None = None,
        options: ModelLoadOptions | None = None,
    ) -> "TransformersEngine":
        """Load a model directory (a whole model, or an adapter bundle) and start the decode loop.

        Args:
            folder: Model directory.
            tokenizer: Its tokenizer, for grammars.
            dtype: Data type of the weights.
            adapters: Name -> folder of a peft adapter that requests can select.
            max_batch_size: Maximum number of answers at the same time.
            max_length: Maximum number of tokens of prompt and answer.
            options: Permissions to load custom code or pickle files; by default neither is allowed.
        """
        model: Any = load_model(folder, dtype, allowed=options)
        for name, path in (adapters or {}).items():
            model = _attach(model, name, path)
        vocab_size = model.get_output_embeddings().weight.shape[0]

        def compile_grammar(grammar: Grammar) -> Constraint:
            return constraint.Constraint(tokenizer, grammar, vocab_size)

        return cls(
            model,
            max_length=max_length,
            max_batch_size=max_batch_size,
            adapters=tuple(adapters or ()),
            make_constraint=compile_grammar,
            head=value_head.load_for_inference(folder, model) if value_head.has_value_head(folder) else None,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Token]:
        """Yield the tokens of the answer. Closing the iterator frees the slot before the next step.

        Raises:
            EngineFailedError: The decode loop died, or the engine was closed.
            ValueError: The request does not fit, or its grammar is invalid.
        """
        self._check(request)
        grammar = None
        if request.grammar is not None:
            assert self._make_constraint is not None
            grammar = await asyncio.to_thread(self._make_constraint, request.grammar)
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[Token | BaseException]()

        def emit(item: Token | BaseException) -> None:
            try:
                loop.call_soon_threadsafe(tokens.put_nowait, item)
            except RuntimeError:  # the event loop is closed
                slot.cancelled = True

        slot = Slot(request, Sampler(request, grammar), emit)
        with self._wake:
            if self._closed or self._failure:
                raise EngineFailedError("The engine is stopped.")
            self._waiting.append(slot)
            self._wake.notify()
        try:
            while True:
                item = await tokens.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            slot.cancelled = True

    async def embed(self, ids: list[int]) -> list[float]:
        """Return the normalized mean of the last hidden states [hidden_size] of a text."""

        def compute() -> list[float]:
            row = torch.tensor([ids], device=self._model.device)
            states = self._model(input_ids=row, output_hidden_states=True, use_cache=False).hidden_states[-1]
            mean = torch.nn.functional.normalize(states[0].float().mean(0), dim=0)
            return [float(value) for value in mean]

        embedding: list[float] = await self._call(compute)
        return embedding

    async def score(self, ids: list[int]) -> float:
        """Return the value of a reward model at the last token.

        Raises:
            ValueError: The model is not a reward model.
        """
        head = self._head
        if head is None:
            raise ValueError("the model is not a reward model")

        def compute() -> float:
            row = torch.tensor([ids], device=self._model.device)
            return float(value_head.compute_values(self._model, head, input_ids=row, use_cache=False)[0, -1])

        score: float = await self._call(compute)
        return score

    def current_load(self) -> EngineLoad:
        """Return the number of running and waiting requests."""
        with self._wake:
            running = sum(len(batch.rows) for batch in self._batches.values()) + (self._prefilling is not None)
            return EngineLoad(running, sum(not slot.cancelled for slot in self._waiting))

    def is_healthy(self) -> bool:
        """Return whether the decode loop runs."""
        return self._thread.is_alive() and self._failure is None and not self._closed

    def close(self) -> None:
        """Stop the decode loop; running answers raise `EngineFailedError`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=60)

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt_ids:
            raise ValueError("the prompt is empty")
        if len(request.prompt_ids) + request.max_tokens > self.max_length:
            raise ValueError(
                f"the prompt has {len(request.prompt_ids)} tokens and max_tokens is {request.max_tokens}, more than "
                f"the {self.max_length} tokens of the model"
            )
        if request.adapter is not None and request.adapter not in self.adapters:
            raise ValueError(f"the engine has no adapter {request.adapter!r}")
        if request.grammar is not None and self._make_constraint is None:
            raise ValueError("the engine was started without grammars")

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the decoding thread, between two steps."""
        future: Future[Any] = Future()
        with self._wake:
            if self._closed or self._failure:
                raise EngineFailedError("The engine is stopped.")
            self._calls.append((function, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    @torch.inference_mode()
    def _run(self) -> None:
        error: BaseException = EngineFailedError("The engine was stopped.")
        try:
            while self._wait_for_work():
                self._run_calls()
                self._prefill()
                for adapter, batch in list(self._batches.items()):
                    if batch.rows:
                        with self._select(adapter):
                            batch.step()
        except BaseException as failure:
            logger.exception("The decode loop failed.")
            self._failure = failure
            error = EngineFailedError(f"The engine failed: {failure}")
        self._end_all(error)

    def _wait_for_work(self) -> bool:
        """Wait for a request or a call; return False when the engine is closed."""
        with self._wake:
            while not (
                self._closed
                or self._calls
                or self._waiting
                or self._prefilling
                or any(batch.rows for batch in self._batches.values())
            ):
                self._wake.wait()
            return not self._closed

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    with self._select(None):
                        future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

    def _prefill(self) -> None:
        """Compute waiting prompts, or a chunk of a long one, if there are free slots."""
        slots = [self._prefilling] if self._prefilling else self._next_waiting()
        slots = [slot for slot in slots if not slot.cancelled]
        self._prefilling = None
        if not slots:
            return
        adapter = slots[0].request.adapter
        batch = self._batches.setdefault(adapter, Batch(self._model, self._together))
        with self._select(adapter):
            if len(slots) > 1:
                batch.prefill_together(slots)
            elif not batch.prefill(slots[0]):
                self._prefilling = slots[0]

    def _next_waiting(self) -> list[Slot]:
        """Take the requests from the queue whose prompts are computed next: one, or several short ones."""
        slots: list[Slot] = []
        with self._wake:
            num_free = self._max_batch_size - sum(len(batch.rows) for batch in self._batches.values())
            while self._waiting and len(slots) < num_free:
                slot = self._waiting[0]
                if not slot.cancelled and slots and not self._fits(slots, slot):
                    break
                self._waiting.popleft()
                if not slot.cancelled:
                    slots.append(slot)
        return slots

    def _fits(self, slots: list[Slot], slot: Slot) -> bool:
        """Return whether a prompt can be computed together with others."""
        longest = max(len(each.request.prompt_ids) for each in [*slots, slot])
        same_adapter = slots[0].request.adapter == slot.request.adapter
        return self._together and same_adapter and longest * (len(slots) + 1) <= MAX_PREFILL_TOKENS

    def _select(self, adapter: str | None) -> Any:
        """Activate an adapter, or none, while the block runs."""
        if not self.adapters:
            return nullcontext()
        if adapter is None:
            return self._model.disable_adapter()
        self._model.set_adapter(adapter)
        return nullcontext()

    def _end_all(self, error: BaseException) -> None:
        with self._wake:
            slots = [*self._waiting, *(slot for batch in self._batches.values() for slot in batch.rows)]
            slots += [self._prefilling] if self._prefilling else []
            self._waiting.clear()
            self._batches.clear()
            self._closed = True
            calls, self._calls = self._calls, deque()
        for slot in slots:
            slot.emit(error)
        for _, future in calls:
            future.set_exception(error)


def context_length(model: PreTrainedModel) -> int:
    """Return the number of positions of a model."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 17)


def _attach(model: Any, name: str, folder: Path) -> Any:
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name=name)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
