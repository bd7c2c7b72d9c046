"""The ledger only grows, and tells where it was touched."""

import json
import os
import re
import resource
import time

import pytest

from tuneline.errors import TrackingError
from tuneline.tracking import ledger

pytestmark = pytest.mark.usefixtures("home")


def write_moves(count=4, model="m"):
    return [ledger.append(model, "champion", str(i) if i else None, str(i + 1), f"because {i}") for i in range(count)]


def change_lines(change):
    time.sleep(0.02)  # a file system's clock ticks every few milliseconds
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

    assert [line["last"] for line in lines] == [ledger.GENESIS_HASH, *(line["hash"] for line in lines[:-1])]


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


def tear(data=b'{"when": '):
    """Leave an unfinished line at the end, as a stopped process or a full disk does."""
    with ledger.path().open("ab") as file:
        file.write(data)


@pytest.mark.parametrize(
    "torn", [b'{"when": ', b"\xff\x00\x00", b"[1, 2]", b"{}"], ids=["json", "bytes", "list", "empty"]
)
def test_a_torn_last_line_is_moved_aside_with_a_warning_and_the_chain_goes_on(torn, caplog):
    write_moves(2)
    tear(torn)

    assert (len(ledger.entries()), ledger.verify()) == (2, 2)
    assert "the last line is incomplete and ignored" in caplog.text
    ledger.append("m", "champion", "2", "3", "after the repair")

    assert [line["to"] for line in ledger.entries()] == ["1", "2", "3"]
    assert ledger.verify() == 3
    (aside,) = ledger.path().parent.glob("ledger.torn-*")
    assert aside.read_bytes() == torn
    assert f"the last line was incomplete; its {len(torn)} bytes were moved to {aside}" in caplog.text


def test_a_last_line_that_lacks_only_its_newline_stays(home):
    write_moves(2)
    ledger.path().write_bytes(ledger.path().read_bytes().removesuffix(b"\n"))
    assert ledger.verify() == 2

    ledger.append("m", "champion", "2", "3", "next")

    assert ledger.verify() == 3
    assert not list(home.glob("ledger.torn-*"))


def test_a_disk_that_is_full_leaves_the_ledger_as_it_was():
    write_moves(2)
    before = ledger.path().read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
    try:
        with pytest.raises(TrackingError, match=r"ledger.jsonl: the move of champion of m to version 3 could not be"):
            ledger.append("m", "champion", "2", "3", "the disk takes 50 bytes more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert ledger.path().read_bytes() == before
    ledger.append("m", "champion", "2", "3", "now it fits")
    assert ledger.verify() == 3


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_edited_line_stops_the_next_append(number):
    write_moves(4)
    change_lines(replaced(number, to="9"))
    before = ledger.path().read_bytes()

    with pytest.raises(TrackingError, match=f"ledger.jsonl:{number}: the ledger was changed here"):
        ledger.append("m", "champion", "4", "5", "next")
    assert ledger.path().read_bytes() == before


def test_an_edit_that_keeps_size_and_time_stops_the_next_append():
    write_moves(4)
    stat = ledger.path().stat()
    data = ledger.path().read_bytes()
    time.sleep(0.02)
    ledger.path().write_bytes(data.replace(b"because 1", b"because 7"))
    os.utime(ledger.path(), ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(TrackingError, match=r"ledger.jsonl:2: the ledger was changed here"):
        ledger.append("m", "champion", "4", "5", "next")


@pytest.mark.parametrize("left", [0, 3], ids=["all", "the last"])
def test_lines_taken_out_at_the_end_stop_the_next_append(left):
    write_moves(4)
    change_lines(lambda lines: lines[:left])

    for act in (ledger.verify, lambda: ledger.append("m", "champion", "4", "5", "next")):
        with pytest.raises(TrackingError, match=rf"has {left} lines, and had 4: the last lines were removed"):
            act()


def test_a_chain_made_anew_with_its_hashes_stops_the_next_append():
    write_moves(3)
    lines = ledger.entries()
    last = ledger.GENESIS_HASH
    for line in lines:
        line |= {"why": "forged", "last": last}
        line["hash"] = last = ledger.digest({key: value for key, value in line.items() if key != "hash"})
    change_lines(lambda _: [json.dumps(line) for line in lines])

    with pytest.raises(TrackingError, match=r"ledger.jsonl:3: the ledger was changed here"):
        ledger.append("m", "champion", "3", "4", "next")


@pytest.mark.parametrize("marker", [None, "", "[]", '{"stamp": [1, 2, 3, 4], "num_lines": 0}'])
def test_without_its_marker_a_whole_ledger_is_read_and_gone_on_with(home, marker):
    write_moves(3)
    (home / ledger.MARKER).unlink() if marker is None else (home / ledger.MARKER).write_text(marker)

    ledger.append("m", "champion", "3", "4", "next")

    assert ledger.verify() == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"model": "m"}', "when: Field required"),
        (b"[1, 2]", "Input should be a valid dictionary"),
        (b"\xff\xfe", "'utf-8' codec"),
        (b'{"when": ', "Expecting value"),
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion"),
        (b"null", "Input should be a valid dictionary"),
    ],
    ids=["keys", "list", "bytes", "torn", "empty", "deep", "null"],
)
def test_a_bad_line_is_told_with_its_place(line, why):
    write_moves(1)
    with ledger.path().open("ab") as file:
        file.write(line + b"\n")

    for act in (ledger.entries, ledger.verify, lambda: ledger.append("m", "champion", "1", "2", "next")):
        with pytest.raises(TrackingError, match=rf"ledger.jsonl:2: not a line of the ledger \(.*{re.escape(why)}"):
            act()


def test_a_line_without_its_hash_is_told_with_its_place():
    write_moves(2)

    def without(lines):
        return [lines[0], json.dumps({key: value for key, value in json.loads(lines[1]).items() if key != "hash"})]

    change_lines(without)

    with pytest.raises(TrackingError, match=r"ledger.jsonl:2: not a line of the ledger \(hash: Field required\)"):
        ledger.verify()


def test_a_reason_that_is_no_unicode_is_refused():
    with pytest.raises(TrackingError, match="is not valid Unicode text"):
        ledger.append("m", "champion", None, "1", "b\udcffd")
    assert ledger.verify() == 0


def test_positions_are_those_of_the_last_lines():
    write_moves(2)
    ledger.append("m", "previous", None, "1", "so")
    ledger.append("m", "champion", "2", None, "gone")

    assert ledger.alias_positions("m") == {"champion": None, "previous": "1"}
    assert ledger.alias_positions("other") == {}


def test_appending_reads_nothing_of_the_lines_before_it(monkeypatch):
    """The cost of an append is that of the line, whatever the length: the lines are never read."""
    write_moves(3)
    monkeypatch.setattr(ledger, "_read", lambda: pytest.fail("the ledger was read"))

    ledger.append("m", "champion", "3", "4", "next")

    assert ledger.alias_positions("m") == {"champion": "4"}


def test_an_event_is_part_of_the_chain_and_moves_no_alias():
    write_moves(2)

    ledger.append_event("serving_rejected", "m", "champion", "2", "serving rejected: it repeats one token", serving="1")
    ledger.append_event("serving_rejected", "other", "champion", "5", "serving rejected: no memory")

    assert ledger.verify() == 4
    assert ledger.alias_positions("m") == {"champion": "2"}
    assert ledger.alias_positions("other") == {}
    (ledger.path().parent / ledger.MARKER).unlink()
    assert ledger.alias_positions("other") == {}, "also when the whole ledger is read again"
    event = ledger.entries("m")[-1]
    assert (event["event"], event["from"], event["to"], event["serving"]) == ("serving_rejected", "2", "2", "1")


def test_an_event_of_an_unknown_kind_is_refused():
    write_moves(1)
    change_lines(replaced(1, event="other"))

    with pytest.raises(TrackingError, match="ledger.jsonl:1: not a line of the ledger .event"):
        ledger.verify()
