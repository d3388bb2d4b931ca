"""Ledgers: counts of missing blocks, continuation, and damaged files."""

from __future__ import annotations

import os

import pytest

from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.ledger import Ledger, _line
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.suite import load_suite

BLOCK = 4
SUITE = load_suite(
    "quick", [f"block={BLOCK}", "attacks=[{name: fgsm, eps: 0.1, threats: [transfer]}]", "corruptions.names=[]"]
)
CONDITIONS = conditions_of(SUITE, 10)
CLEAN, ATTACK = CONDITIONS
ENTRIES = (
    (CLEAN, 0, Measurement("1101", "1111", predictions=(1, 2), images="AAAA")),
    (CLEAN, 2, Measurement("01", "11")),
    (ATTACK, 1, Measurement("1111", "1110", l2_norms=(0.25, 1.5, 0.0, 2.0))),
)


def opened(path, fingerprint="0f"):
    return Ledger.open(path, fingerprint, CONDITIONS, BLOCK)


def contents(ledger):
    """Returns the entries of a ledger as JSON would hold them."""
    return {
        (label, block): tuple(list(value) if isinstance(value, tuple) else value for value in measurement)
        for label, blocks in ledger.measurements.items()
        for block, measurement in blocks.items()
    }


@pytest.fixture
def path(tmp_path):
    """The path of a ledger with three entries."""
    ledger = opened(tmp_path / "ledger")
    for entry in ENTRIES:
        ledger.add(*entry)
    return tmp_path / "ledger"


def test_a_ledger_counts_the_missing_blocks(tmp_path):
    ledger = opened(tmp_path / "ledger")
    assert ledger.missing == 2 * 3
    ledger.add(CLEAN, 2, Measurement("11", "11"))
    assert ledger.missing == 5
    assert not ledger.is_pending(CLEAN, 2)
    assert ledger.is_pending(CLEAN, 1)
    ledger.add(ATTACK, 0, Measurement(reason="no gradient"))  # the attack's other blocks are not needed
    assert ledger.missing == 2
    assert not ledger.is_pending(ATTACK, 1)


def test_a_ledger_continues(path):
    expected = {(condition.label, block) for condition, block, _ in ENTRIES}
    again = opened(path)
    assert contents(again).keys() == expected
    again.add(CLEAN, 1, Measurement("1111", "1111"))
    assert contents(opened(path)).keys() == expected | {("clean", 1)}


def test_a_refusal_is_continued_too(path):
    opened(path).add(ATTACK, 0, Measurement(reason="no gradient"))
    assert not opened(path).is_pending(ATTACK, 2)


@pytest.mark.slow
@pytest.mark.parametrize("line", [1, 2, 3])
def test_the_block_of_a_line_with_one_changed_character_is_measured_again(path, line):
    lines = path.read_bytes().splitlines(keepends=True)
    for place in range(len(lines[line]) - 1):
        altered = bytearray(lines[line])
        altered[place] = ord("0") if altered[place] != ord("0") else ord("1")
        path.write_bytes(b"".join([*lines[:line], bytes(altered), *lines[line + 1 :]]))
        expected = {(c.label, block) for number, (c, block, _) in enumerate(ENTRIES, 1) if number != line}
        assert contents(opened(path)).keys() == expected, place


DAMAGED = {
    "cut off": lambda content: content[:-9],
    "a line cut off, then another": lambda content: content[:-9] + b"\n" + content.splitlines(keepends=True)[1],
    "not UTF-8": lambda content: content + b"\xff\xfe\n",
    "empty lines": lambda content: content.replace(b"\n", b"\n\n"),
    "without digests": lambda content: b"\n".join(line.rpartition(b" ")[0] or line for line in content.splitlines()),
    "NUL": lambda content: content + b"\0" * 100,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_ledger_keeps_its_undamaged_entries_only(path, damage):
    before = contents(opened(path))
    path.write_bytes(damage(path.read_bytes()))
    after = contents(opened(path))
    assert after.items() <= before.items()
    assert contents(opened(path)) == after  # the damaged lines are gone


# Entries with a right digest that do not fit: of another version, or of a hand that knows the format.
UNFIT = [
    ("other", 0, Measurement("1111", "1111")),
    ("clean", 3, Measurement("1111", "1111")),
    ("clean", -1, Measurement("1111", "1111")),
    ("clean", 2, Measurement("1111", "1111")),
    ("clean", 0, Measurement("", "")),
    ("clean", "0", Measurement("1111", "1111")),
]


@pytest.mark.parametrize("entry", UNFIT, ids=str)
def test_an_entry_that_does_not_fit_is_ignored(tmp_path, entry):
    path = tmp_path / "ledger"
    path.write_text("0f\n" + _line("0f", *entry))
    assert contents(opened(path)) == {}


def test_a_ledger_with_another_fingerprint_is_not_used(path, capsys):
    assert contents(opened(path, "1f")) == {}
    assert "starting anew" in capsys.readouterr().err
    assert contents(opened(path, "1f")) == {}
    assert not capsys.readouterr().err  # nothing was lost with an empty ledger


def test_a_pipe_in_the_place_of_a_ledger_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "ledger")
    opened(tmp_path / "ledger").add(*ENTRIES[0])
    assert len(contents(opened(tmp_path / "ledger"))) == 1
