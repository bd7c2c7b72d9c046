"""Answer prompts greedily, side by side, stopping each at its stop token.

Prompts are sorted by length and padded on the left; an answer does not depend on its neighbours, to rounding.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline import progress


@torch.inference_mode()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    title: str = "answers",
) -> list[str]:
    """Return the answer to each rendered prompt, in order.

    Args:
        model: Causal language model.
        tokenizer: The one that rendered the prompts.
        prompts: Texts that end with the generation header.
        max_new_tokens: Tokens after which an answer is cut.
        batch_size: Prompts in one batch.
        title: Shown beside the progress.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    with progress.bar(title, len(prompts)) as advance:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            for i, text in zip(
                members, _batch(model, tokenizer, [prompts[i] for i in members], max_new_tokens), strict=True
            ):
                texts[i] = text
            advance(start + len(members))
    return texts


def _batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[str]:
    rows = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]
