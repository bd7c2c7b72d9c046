"""Loss switches: keys of a turn that turn its loss on or off. A switch that the stage cannot apply is refused.

`true` on an assistant turn is the default (OpenAI's format writes `weight: 1`) and is accepted in every stage.
"""

from tuneline.config.sections.sources import LossOn
from tuneline.data.align.formats.base import Record
from tuneline.data.align.formats.chat import LOSS_SWITCHES
from tuneline.data.schema import Content, Kind, Message
from tuneline.errors import DataError

_NAMES = frozenset(LOSS_SWITCHES)


def check_row(record: Record) -> None:
    """Refuse a switch that turns off the loss of a whole row: switches apply to turns only.

    Raises:
        DataError: A switch at the level of the row is false.
    """
    if _NAMES.isdisjoint(record):
        return
    for name in LOSS_SWITCHES:
        if record.get(name) is False:
            raise DataError(
                f"the row has {name!r}: false, which is supported in turns only. Remove the row, or set it in the "
                "turns without loss.",
                f"{name!r} is false for a whole row",
            )


def check_turns(content: Content, kind: Kind, loss_on: LossOn) -> None:
    """Check that the stage can apply the switches of all turns.

    Args:
        content: Content of an example.
        kind: Its kind.
        loss_on: Turns whose loss a switch can change.

    Raises:
        DataError: A switch turns loss on or off where the stage cannot.
    """
    turns = content["messages"] + content["chosen"] + content["rejected"]
    if not [turn for turn in turns if turn["train"] is not None]:
        return
    loss_on = loss_on if kind == "chat" else "none"
    answers = [*content["chosen"], *content["rejected"]] or turns[-1:]
    for turn in turns:
        fault = _fault(turn, loss_on, is_answer=any(turn is answer for answer in answers))
        if fault:
            raise DataError(f"the {turn['role']} turn {fault[0]}", fault[1])


def _fault(turn: Message, loss_on: LossOn, *, is_answer: bool) -> tuple[str, str] | None:
    """Return the error of a turn's switch, and the reason under which it is counted."""
    if turn["role"] == "assistant":
        if turn["train"] is False and loss_on == "none" and is_answer:
            return (
                "turns its loss off, but this stage trains on that answer. Remove the row, or the switch.",
                "loss is off for the answer",
            )
        return None
    if turn["train"] and loss_on != "all":
        more = ", or set tokenize.train_on: all" if loss_on == "assistant" else ""
        return (
            f"turns its loss on, but only assistant turns have loss. Remove the switch{more}.",
            f"loss is on for a {turn['role']} turn",
        )
    if turn["train"] is False and loss_on == "all":
        return (
            "turns its loss off, but tokenize.train_on: all trains on every turn. Remove the switch, or set "
            "train_on: assistant.",
            f"loss is off for a {turn['role']} turn",
        )
    return None
