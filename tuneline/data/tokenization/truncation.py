"""Truncation: shorten conversations that exceed `max_length` so that the remainder is a valid training example.

Whole rounds (a question and its answer) are removed first, and the remainder is rendered again, so its ids are those of
the chat template. Only a single round that is too long is truncated inside: tokens of the question's content or of the
answer are removed; the generation prompt, an empty thinking block of the template and the stop token are kept.
"""

from collections.abc import Callable
from functools import cache

from tuneline.data.schema import Message
from tuneline.data.tokenization.loss_mask import AnswerSpan

MIN_ANSWER_TOKENS = 2
"""One content token and the stop token."""

EncodeMessages = Callable[[list[Message]], tuple[list[int], list[AnswerSpan]]]
EncodedConversation = tuple[list[Message], list[int], list[AnswerSpan]]


def truncate(
    messages: list[Message], encode: EncodeMessages, policy: str, max_length: int
) -> list[EncodedConversation]:
    """Shorten a conversation.

    Args:
        messages: Messages in order; together too long.
        encode: Renders and encodes messages.
        policy: `right`, `left`, `proportional` or `split`.
        max_length: Maximum number of tokens.

    Returns:
        Conversations with ids and answers, each at most `max_length` tokens long; empty if no answer would remain.
    """
    system, rounds = _split_rounds(messages)
    if policy == "split":
        return _split(system, rounds, encode, max_length)
    truncators = {"right": _right, "left": _left, "proportional": _proportional}
    conversation = truncators[policy](system, rounds, encode, max_length)
    return [conversation] if conversation else []


def split_budget(source: int, target: int, budget: int) -> tuple[int, int]:
    """Divide a token budget between a prompt and its answer in proportion; the shorter one is kept whole if possible.

    The rule is LlamaFactory's `infer_seqlen` (`cutoff_len`).

    Args:
        source: Tokens in the prompt.
        target: Tokens in the answer.
        budget: Tokens available for both.

    Returns:
        Tokens to keep of the prompt and of the answer.
    """
    if target * 2 < budget:
        max_target = budget
    elif source * 2 < budget:
        max_target = budget - source
    else:
        max_target = int(budget * (target / (source + target)))
    target_length = min(max_target, target)
    return min(max(budget - target_length, 0), source), target_length


def truncate_pair(
    prompt: list[int], answers: list[list[int]], question: tuple[int, int] | None, policy: str, max_length: int
) -> tuple[list[int], list[list[int]]] | None:
    """Shorten a prompt and its alternative answers.

    Args:
        prompt: Ids before the answers.
        answers: Ids of each answer, ending with the stop token.
        question: Span of the last question's content in the prompt, from which tokens are removed.
        policy: `right` shortens the answers only, `left` removes the beginning of the question, others shorten both in
            proportion.
        max_length: Maximum number of tokens of prompt and answer together.

    Returns:
        The shortened prompt and answers, or None if no answer would remain.
    """
    longest = max(map(len, answers))
    source, target = len(prompt), max_length - len(prompt)
    if policy == "left":
        source, target = max_length - longest, longest
    elif policy != "right":
        source, target = split_budget(len(prompt), longest, max_length)
    start, end = question or (len(prompt), len(prompt))
    num_removed = min(max(len(prompt) - max(source, 0), 0), end - start)
    gap = (start, start + num_removed) if policy == "left" else (end - num_removed, end)
    shortened = [*prompt[: gap[0]], *prompt[gap[1] :]]
    answer_length = min(max(target, MIN_ANSWER_TOKENS), max_length - len(shortened))
    if answer_length < MIN_ANSWER_TOKENS:
        return None
    return shortened, [ids if len(ids) <= answer_length else [*ids[: answer_length - 1], ids[-1]] for ids in answers]


def _split_rounds(messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    first = 1 if messages[0]["role"] == "system" else 0
    rounds: list[list[Message]] = []
    for i, message in enumerate(messages[first:]):
        if i == 0 or message["role"] == "user":
            rounds.append([])
        rounds[-1].append(message)
    return messages[:first], rounds


def _join(system: list[Message], rounds: list[list[Message]]) -> list[Message]:
    return [*system, *(message for messages in rounds for message in messages)]


def _right(
    system: list[Message], rounds: list[list[Message]], encode: EncodeMessages, max_length: int
) -> EncodedConversation | None:
    """Keep as many of the first rounds as fit; the end of the last answer may be removed."""
    encode_first = _first_rounds_encoder(system, rounds, encode)
    count = _largest_count(lambda count: _has_room_for_answer(encode_first(count), max_length), len(rounds))
    if not count:
        return None
    messages, ids, answers = encode_first(count)
    return messages, *_shorten(ids, answers, 0, "right", max_length - answers[-1].content_start)


def _left(
    system: list[Message], rounds: list[list[Message]], encode: EncodeMessages, max_length: int
) -> EncodedConversation | None:
    """Keep the last rounds; if the last round alone is too long, remove the beginning of its question."""

    @cache
    def encode_last(count: int) -> EncodedConversation:
        messages = _join(system, rounds[-count:])
        return messages, *encode(messages)

    count = _largest_count(lambda count: _fits(encode_last(count), max_length), len(rounds))
    if count:
        return _strip_after_answer(encode_last(count))
    return _truncate_last_round(*encode_last(1), "left", max_length, lambda _, target: (max_length - target, target))


def _proportional(
    system: list[Message], rounds: list[list[Message]], encode: EncodeMessages, max_length: int
) -> EncodedConversation | None:
    """Keep the first rounds; the first round that does not fit is truncated in proportion."""
    count, encode_first = _fitting_rounds(system, rounds, encode, max_length)
    fitting = _strip_after_answer(encode_first(count)) if count else None
    if count == len(rounds):
        return fitting
    messages, ids, answers = encode_first(count + 1)
    if not answers:
        return fitting
    before, answer = fitting[2][-1].end if fitting else 0, answers[-1]
    source, target = split_budget(answer.content_start - before, answer.end - answer.content_start, max_length - before)
    sizes = source + before, target
    return _truncate_last_round(messages, ids, answers, "right", max_length, lambda *_: sizes) or fitting


def _split(
    system: list[Message], rounds: list[list[Message]], encode: EncodeMessages, max_length: int
) -> list[EncodedConversation]:
    """Split into several conversations, each with the system message; truncate a single long round in proportion."""
    conversations: list[EncodedConversation] = []
    while rounds:
        count, encode_first = _fitting_rounds(system, rounds, encode, max_length)
        conversation = (
            _strip_after_answer(encode_first(count)) if count else _proportional(system, rounds[:1], encode, max_length)
        )
        conversations += [conversation] if conversation else []
        rounds = rounds[count or 1 :]
    return conversations


def _largest_count(is_valid: Callable[[int], bool], limit: int) -> int:
    """Return the largest count up to a limit that is valid, given that all smaller counts are; 0 if none is valid.

    Counts double first, because encoding many rounds is far more expensive than encoding few.
    """
    low, high = 0, limit + 1
    while high - low > 1:
        count = min(2 * low or 1, (low + high) // 2)
        low, high = (count, high) if is_valid(count) else (low, count)
    return low


def _first_rounds_encoder(
    system: list[Message], rounds: list[list[Message]], encode: EncodeMessages
) -> Callable[[int], EncodedConversation]:
    """Return a cached function that encodes the first `count` rounds."""

    @cache
    def encode_first(count: int) -> EncodedConversation:
        messages = _join(system, rounds[:count])
        return messages, *encode(messages)

    return encode_first


def _fitting_rounds(
    system: list[Message], rounds: list[list[Message]], encode: EncodeMessages, max_length: int
) -> tuple[int, Callable[[int], EncodedConversation]]:
    """Return the number of first rounds that fit without truncation, and a function that encodes them."""
    encode_first = _first_rounds_encoder(system, rounds, encode)
    return _largest_count(lambda count: _fits(encode_first(count), max_length), len(rounds)), encode_first


def _has_room_for_answer(conversation: EncodedConversation, max_length: int) -> bool:
    answers = conversation[2]
    return bool(answers) and answers[-1].content_start + MIN_ANSWER_TOKENS <= max_length


def _fits(conversation: EncodedConversation, max_length: int) -> bool:
    answers = conversation[2]
    return bool(answers) and answers[-1].end <= max_length


def _strip_after_answer(conversation: EncodedConversation) -> EncodedConversation:
    """Return a conversation up to the end of its last answer."""
    messages, ids, answers = conversation
    return messages, ids[: answers[-1].end], answers


def _truncate_last_round(
    messages: list[Message],
    ids: list[int],
    answers: list[AnswerSpan],
    side: str,
    max_length: int,
    sizes: Callable[[int, int], tuple[int, int]],
) -> EncodedConversation | None:
    """Truncate inside the last round: `sizes` returns how many tokens the prompt and the answer may keep."""
    if not answers:
        return None
    last = answers[-1]
    target = last.end - last.content_start
    source, max_answer = sizes(last.content_start, target)
    question_length = last.question[1] - last.question[0] if last.question else 0
    num_removed = min(max(last.content_start - max(source, 0), 0), question_length)
    answer_length = min(max(max_answer, MIN_ANSWER_TOKENS), max_length - (last.content_start - num_removed), target)
    if answer_length < min(MIN_ANSWER_TOKENS, target):
        return None
    return messages, *_shorten(ids, answers, num_removed, side, answer_length)


def _shorten(
    ids: list[int], answers: list[AnswerSpan], num_removed: int, side: str, answer_length: int
) -> tuple[list[int], list[AnswerSpan]]:
    """Remove tokens from one side of the last question, and shorten its answer to `answer_length` with stop token."""
    last = answers[-1]
    start, end = last.question or (last.content_start, last.content_start)
    gap = (start, start + num_removed) if side == "left" else (end - num_removed, end)
    answer = ids[last.content_start : last.end]
    if answer_length < len(answer):
        answer = [*answer[: answer_length - 1], answer[-1]]
    shortened = [*ids[: gap[0]], *ids[gap[1] : last.content_start], *answer]
    content_start, start = last.content_start - num_removed, last.start - num_removed
    end = content_start + len(answer)
    thinking_end = -1 if last.thinking_end < 0 else min(last.thinking_end - num_removed, end)
    empty_block_end = -1 if last.empty_block_end < 0 else content_start
    moved = AnswerSpan(last.message, start, end, thinking_end, empty_block_end=empty_block_end)
    return shortened, [*answers[:-1], moved]
