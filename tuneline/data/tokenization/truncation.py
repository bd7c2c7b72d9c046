"""Cutting conversations that are longer than a row, so that what is left is still one a model can learn from.

Whole rounds (a question and its answer) go first, and what is left is rendered anew, so its ids are again those of the
template. Only a single round that is too long is cut inside: tokens of the question's content or of the answer go; the
generation header, an empty thinking block of the template and the stop token always stay.
"""

from collections.abc import Callable
from functools import cache

from tuneline.data.schema import Message
from tuneline.data.tokenization.loss_mask import AnswerSpan

MIN_ANSWER_TOKENS = 2
"""Tokens: one that is said, and the stop token."""

EncodeMessages = Callable[[list[Message]], tuple[list[int], list[AnswerSpan]]]
EncodedConversation = tuple[list[Message], list[int], list[AnswerSpan]]


def truncate(messages: list[Message], read: EncodeMessages, policy: str, max_length: int) -> list[EncodedConversation]:
    """Shorten a conversation.

    Args:
        messages: Turns in order; too long as they are.
        read: Renders and encodes messages.
        policy: `right`, `left`, `proportional` or `split`.
        max_length: Tokens that are allowed.

    Returns:
        Conversations with ids and answers, each at most `max_length` long; none where no answer would be left.
    """
    system, rounds = _rounds(messages)
    if policy == "split":
        return _split(system, rounds, read, max_length)
    found = {"right": _right, "left": _left, "proportional": _proportional}[policy](system, rounds, read, max_length)
    return [found] if found else []


def split_budget(source: int, target: int, budget: int) -> tuple[int, int]:
    """Divide a budget between a prompt and its answer in proportion; a short one of the two keeps all it has.

    The rule is LlamaFactory's `infer_seqlen` (`cutoff_len`); tokens.
    """
    if target * 2 < budget:
        most = budget
    elif source * 2 < budget:
        most = budget - source
    else:
        most = int(budget * (target / (source + target)))
    kept = min(most, target)
    return min(max(budget - kept, 0), source), kept


def truncate_pair(
    prompt: list[int], answers: list[list[int]], content: tuple[int, int] | None, policy: str, max_length: int
) -> tuple[list[int], list[list[int]]] | None:
    """Shorten a prompt and its answers, each of which follows the same prompt.

    Args:
        prompt: Ids up to the answers.
        answers: Ids of each answer, stop token last.
        content: Bounds in the prompt of what was asked last; tokens are taken there.
        policy: `right` takes from the answers only, `left` from the beginning of the content, others in proportion.
        max_length: Tokens that prompt and answer may have together.
    """
    longest = max(map(len, answers))
    source, target = len(prompt), max_length - len(prompt)
    if policy == "left":
        source, target = max_length - longest, longest
    elif policy != "right":
        source, target = split_budget(len(prompt), longest, max_length)
    start, end = content or (len(prompt), len(prompt))
    removed = min(max(len(prompt) - max(source, 0), 0), end - start)
    gap = (start, start + removed) if policy == "left" else (end - removed, end)
    shorter = [*prompt[: gap[0]], *prompt[gap[1] :]]
    room = min(max(target, MIN_ANSWER_TOKENS), max_length - len(shorter))
    if room < MIN_ANSWER_TOKENS:
        return None
    return shorter, [ids if len(ids) <= room else [*ids[: room - 1], ids[-1]] for ids in answers]


def _rounds(messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    first = 1 if messages[0]["role"] == "system" else 0
    rounds: list[list[Message]] = []
    for i, message in enumerate(messages[first:]):
        if i == 0 or message["role"] == "user":
            rounds.append([])
        rounds[-1].append(message)
    return messages[:first], rounds


def _joined(system: list[Message], rounds: list[list[Message]]) -> list[Message]:
    return [*system, *(message for part in rounds for message in part)]


def _right(
    system: list[Message], rounds: list[list[Message]], read: EncodeMessages, max_length: int
) -> EncodedConversation | None:
    """Keep as many rounds as begin in time; the last answer may lose its end."""
    first = _first(system, rounds, read)
    count = _most(lambda count: _begins(first(count), max_length), len(rounds))
    if not count:
        return None
    messages, ids, answers = first(count)
    return messages, *_shorten(ids, answers, 0, "right", max_length - answers[-1].said)


def _left(
    system: list[Message], rounds: list[list[Message]], read: EncodeMessages, max_length: int
) -> EncodedConversation | None:
    """Keep the last rounds; if one alone is too long, its question loses its beginning."""

    @cache
    def last(count: int) -> EncodedConversation:
        messages = _joined(system, rounds[-count:])
        return messages, *read(messages)

    count = _most(lambda count: _ends(last(count), max_length), len(rounds))
    if count:
        return _trimmed(last(count))
    return _inside(*last(1), "left", max_length, lambda source, target: (max_length - target, target))


def _proportional(
    system: list[Message], rounds: list[list[Message]], read: EncodeMessages, max_length: int
) -> EncodedConversation | None:
    """Keep rounds from the first; the one that does not fit is cut in proportion."""
    count, first = _whole(system, rounds, read, max_length)
    kept = _trimmed(first(count)) if count else None
    if count == len(rounds):
        return kept
    messages, ids, answers = first(count + 1)
    if not answers:
        return kept
    before = kept[2][-1].end if kept else 0
    shared = split_budget(answers[-1].said - before, answers[-1].end - answers[-1].said, max_length - before)
    return _inside(messages, ids, answers, "right", max_length, lambda *_: (shared[0] + before, shared[1])) or kept


def _split(
    system: list[Message], rounds: list[list[Message]], read: EncodeMessages, max_length: int
) -> list[EncodedConversation]:
    """Make several conversations of one, each with the system message; a single round is cut in proportion."""
    made: list[EncodedConversation] = []
    while rounds:
        count, first = _whole(system, rounds, read, max_length)
        best = _trimmed(first(count)) if count else _proportional(system, rounds[:1], read, max_length)
        made += [best] if best else []
        rounds = rounds[count or 1 :]
    return made


def _most(holds: Callable[[int], bool], limit: int) -> int:
    """Return the largest count up to a limit for which something holds, if it holds for all below it; 0 if for none.

    Counts double first, since to look at many rounds costs far more than to look at few.
    """
    low, high = 0, limit + 1
    while high - low > 1:
        count = min(2 * low or 1, (low + high) // 2)
        low, high = (count, high) if holds(count) else (low, count)
    return low


def _first(
    system: list[Message], rounds: list[list[Message]], read: EncodeMessages
) -> Callable[[int], EncodedConversation]:
    """Return what reads the first so many rounds, each number of them once."""

    @cache
    def first(count: int) -> EncodedConversation:
        messages = _joined(system, rounds[:count])
        return messages, *read(messages)

    return first


def _whole(
    system: list[Message], rounds: list[list[Message]], read: EncodeMessages, max_length: int
) -> tuple[int, Callable[[int], EncodedConversation]]:
    """Return how many of the first rounds fit as they are, and what reads so many."""
    first = _first(system, rounds, read)
    return _most(lambda count: _ends(first(count), max_length), len(rounds)), first


def _begins(part: EncodedConversation, max_length: int) -> bool:
    answers = part[2]
    return bool(answers) and answers[-1].said + MIN_ANSWER_TOKENS <= max_length


def _ends(part: EncodedConversation, max_length: int) -> bool:
    answers = part[2]
    return bool(answers) and answers[-1].end <= max_length


def _trimmed(part: EncodedConversation) -> EncodedConversation:
    """Return a conversation up to the end of its last answer."""
    messages, ids, answers = part
    return messages, ids[: answers[-1].end], answers


def _inside(
    messages: list[Message],
    ids: list[int],
    answers: list[AnswerSpan],
    side: str,
    max_length: int,
    sizes: Callable[[int, int], tuple[int, int]],
) -> EncodedConversation | None:
    """Cut the last round inside: `sizes` says how many tokens prompt and answer may keep."""
    if not answers:
        return None
    last = answers[-1]
    target = last.end - last.said
    source, room = sizes(last.said, target)
    content = last.content[1] - last.content[0] if last.content else 0
    removed = min(max(last.said - max(source, 0), 0), content)
    kept = min(max(room, MIN_ANSWER_TOKENS), max_length - (last.said - removed), target)
    if kept < min(MIN_ANSWER_TOKENS, target):
        return None
    return messages, *_shorten(ids, answers, removed, side, kept)


def _shorten(
    ids: list[int], answers: list[AnswerSpan], removed: int, side: str, kept: int
) -> tuple[list[int], list[AnswerSpan]]:
    """Take `removed` tokens from one side of the last question, and leave `kept` of its answer with its stop token."""
    last = answers[-1]
    start, end = last.content or (last.said, last.said)
    gap = (start, start + removed) if side == "left" else (end - removed, end)
    answer = ids[last.said : last.end]
    if kept < len(answer):
        answer = [*answer[: kept - 1], answer[-1]]
    shorter = [*ids[: gap[0]], *ids[gap[1] : last.said], *answer]
    begin, start = last.said - removed, last.start - removed
    thought = -1 if last.thought < 0 else min(last.thought - removed, begin + len(answer))
    block_end = -1 if last.empty_block_end < 0 else begin
    moved = AnswerSpan(last.message, start, begin + len(answer), thought, empty_block_end=block_end)
    return shorter, [*answers[:-1], moved]
