"""Switches: whether a turn carries loss, as its row says it. What a stage cannot do is refused, not passed over.

`true` on an assistant's turn says only what is so anyway (OpenAI's format writes `weight: 1`), and is taken everywhere.
"""

from tuneline.config.sections.sources import LossOn
from tuneline.data.align.formats.base import Record
from tuneline.data.align.formats.chat import LOSS_SWITCHES
from tuneline.data.schema import Content, Kind, Message
from tuneline.errors import DataError

_NAMES = frozenset(LOSS_SWITCHES)


def check_row(record: Record) -> None:
    """Refuse a row that is to carry no loss as a whole: a switch is read in a turn only.

    Raises:
        DataError: A switch beside the turns says false.
    """
    if _NAMES.isdisjoint(record):
        return
    for name in LOSS_SWITCHES:
        if record.get(name) is False:
            raise DataError(
                f"the row says {name!r}: false, which is read in turns only. Leave the row out, or write it into the "
                "turns that carry no loss.",
                f"{name!r} is false for a whole row",
            )


def check_turns(said: Content, kind: Kind, loss_on: LossOn) -> None:
    """Check that no turn asks for what its stage cannot do.

    Args:
        said: What a row says.
        kind: Its kind.
        loss_on: Turns whose loss a switch can change.

    Raises:
        DataError: A turn is to carry loss and cannot, or does and must not.
    """
    turns = said["messages"] + said["chosen"] + said["rejected"]
    if not [turn for turn in turns if turn["train"] is not None]:
        return
    loss_on = loss_on if kind == "chat" else "none"
    learnt = [*said["chosen"], *said["rejected"]] or turns[-1:]
    for turn in turns:
        fault = _fault(turn, loss_on, is_learnt=any(turn is each for each in learnt))
        if fault:
            raise DataError(f"a turn by the {turn['role']} {fault[0]}", fault[1])


def _fault(turn: Message, loss_on: LossOn, *, is_learnt: bool) -> tuple[str, str] | None:
    """Return what is wrong with a turn's switch, and the reason to count it under."""
    if turn["role"] == "assistant":
        if turn["train"] is False and loss_on == "none" and is_learnt:
            return (
                "says that it carries no loss, and it is the answer that this stage learns from. Leave out the row, or "
                "the switch.",
                "an answer to learn from carries no loss",
            )
        return None
    if turn["train"] and loss_on != "all":
        more = ", or set tokenize.train_on: all" if loss_on == "assistant" else ""
        return (
            f"says that it carries loss, and only the assistant's turns can. Leave the switch out{more}.",
            f"a {turn['role']} turn is to carry loss",
        )
    if turn["train"] is False and loss_on == "all":
        return (
            "says that it carries no loss, and tokenize.train_on: all trains it. Leave the switch out, or set "
            "train_on: assistant.",
            f"a {turn['role']} turn is to carry no loss",
        )
    return None
