"""The ledger only grows, and tells where it was touched."""

import json
import re

import pytest

from tuneline.errors import TrackingError
from tuneline.tracking import ledger

pytestmark = pytest.mark.usefixtures("home")


def write_moves(count=4, model="m"):
    return [ledger.append(model, "champion", str(i) if i else None, str(i + 1), f"because {i}") for i in range(count)]


def change_lines(change):
    lines = ledger.path().read_text().splitlines()
    ledger.path().write_text("".join(f"{line}\n" for line in change(lines)))


def replaced(number, **values):
    """Return a change of one line's values, counted from 1."""

    def change(lines):
        lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | values)
        return lines

    return change


def test_an_empty_ledger_is_whole():
    assert ledger.entries() == []
    assert ledger.verify() == 0


def test_moves_are_kept_in_order_with_all_that_was_said(home):
    written = [
        ledger.append("m", "champion", None, "1", "it won", report=[{"low": 0.1, "metric": "rougeL"}], nothing=None),
        ledger.append("m", "champion", "1", None, "it did harm: ü\u2028"),
    ]

    assert ledger.entries() == written
    assert ledger.path() == home / "ledger.jsonl"
    assert (written[0]["from"], written[0]["to"], written[0]["report"][0]["low"]) == (None, "1", 0.1)
    assert ledger.verify() == 2


def test_each_line_holds_the_hash_of_the_last():
    lines = write_moves()

    assert [line["last"] for line in lines] == [ledger.START, *(line["hash"] for line in lines[:-1])]


def test_earlier_lines_are_never_rewritten():
    write_moves(2)
    before = ledger.path().read_text()

    write_moves(2)

    assert ledger.path().read_text().startswith(before)


def test_moves_of_one_model_are_found_among_others():
    write_moves(2, model="a")
    write_moves(1, model="b")
    write_moves(1, model="a")

    assert [line["model"] for line in ledger.entries("a")] == ["a"] * 3
    assert [line["to"] for line in ledger.entries("b")] == ["1"]
    assert ledger.entries("c") == []
    assert ledger.verify() == 4


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (replaced(2, to="9"), 2),
        (replaced(1, why="because I say so"), 1),
        (replaced(4, who="someone else"), 4),
        (replaced(3, hash="0" * 64), 3),
        (lambda lines: lines[:1] + lines[2:], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2),
        (lambda lines: lines[:3] + lines[2:], 4),
    ],
    ids=["value", "first line", "last line", "hash", "taken out", "beginning taken out", "swapped", "put in twice"],
)
def test_a_touched_line_is_found(change, number):
    write_moves(4)
    change_lines(change)

    with pytest.raises(TrackingError, match=f"^{re.escape(str(ledger.path()))}:{number}: the ledger was changed here"):
        ledger.verify()


def test_a_line_with_its_hash_made_anew_breaks_the_next():
    write_moves(4)

    def forge(lines):
        entry = {key: value for key, value in json.loads(lines[1]).items() if key != "hash"} | {"to": "9"}
        return [lines[0], json.dumps(entry | {"hash": ledger.digest(entry)}), *lines[2:]]

    change_lines(forge)

    with pytest.raises(TrackingError, match=r"ledger.jsonl:3: the ledger was changed here"):
        ledger.verify()


def test_a_torn_line_is_told_with_its_place():
    ledger.append("m", "champion", None, "1", "first")
    with ledger.path().open("a") as file:
        file.write('{"when": ')

    with pytest.raises(TrackingError, match=r"ledger.jsonl:2: the line is torn"):
        ledger.entries()
