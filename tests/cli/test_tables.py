"""Tables fit every terminal: rows stay whole, long texts go below them."""

from __future__ import annotations

from clara_flow.cli.tables import table_lines

REASON = "there is no destination 'ATTIC'; add it first: clara-flow dicom destination add"
ROWS = [{"delivery": "3f2a91c0", "files": "12"}, {"delivery": "9", "files": "3"}]


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    assert table_lines(ROWS, right={"files"}, width=20) == ["delivery  files", "3f2a91c0     12", "9             3"]


def test_notes_are_wrapped_between_words_on_a_terminal_and_never_in_a_pipe() -> None:
    assert table_lines(ROWS, notes=["", REASON])[-1] == f"    {REASON}"
    for width in (10, 40, 80):
        *table, first, second = table_lines(ROWS, notes=["", REASON], width=width)[:5]
        assert len(table) == 3
        assert max(len(first), len(second)) < max(width, 40)
        assert " ".join(line.strip() for line in table_lines(ROWS, notes=["", REASON], width=width)[3:]) == REASON


def test_what_is_copied_from_a_terminal_is_whole() -> None:
    uid = "1.2.826.0.1.3680043.8.498.11057217451000847493580418184574121155"
    assert table_lines(ROWS, notes=[uid, ""], width=40)[2] == f"    {uid}"
