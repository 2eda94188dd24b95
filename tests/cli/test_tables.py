"""Tables as plain text."""

from __future__ import annotations

from distilld.tables import Size, Table, counted, plain_text, text_of


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    """A column of numbers is aligned to the right under its name, others to the left; nothing trails."""
    table = Table("Title", ("name", "rows", "note"), [("a", 5, "x"), ("long name", 12_345, None)])
    assert plain_text(table) == (
        "Title\n"
        "  name         rows  note\n"
        "  a               5  x\n"
        "  long name  12,345  -"
    )  # fmt: skip


def test_column_without_any_number_is_text() -> None:
    """A column that holds text beside numbers, or nothing, is aligned to the left."""
    table = Table("T", ("a", "b"), [(1, None), ("x", None)])
    assert (table.is_number(0), table.is_number(1)) == (False, False)
    assert Table("T", ("a",), [(1,), (None,)]).is_number(0)
    assert plain_text(Table("T", ("a", "b"), [])) == "T\n  a  b"


def test_last_column_is_wrapped_where_a_table_is_too_wide() -> None:
    """A long text at the end of a row goes on below itself; nothing is cut off."""
    table = Table(
        "T", ("reason", "rows", "what it means"), [("empty", 5, "the run left no text at all"), ("x", 1, "y")]
    )
    assert plain_text(table, 36) == (
        "T\n"
        "  reason  rows  what it means\n"
        "  empty      5  the run left no text\n"
        "                at all\n"
        "  x          1  y"
    )
    assert plain_text(table, 30).startswith("T\n  reason         empty\n")


def test_cells_cannot_steer_a_terminal() -> None:
    """What does not print is escaped, so a cell stays on its line."""
    assert text_of("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert text_of("ä日") == "ä日"
    assert "\x1b" not in plain_text(Table("\x1b", ("a",), [("\x1b",)]))


def test_one_of_a_kind_is_no_plural() -> None:
    """What is counted stands in the plural but of one."""
    assert [counted(number, "fault") for number in (0, 1, 1_000)] == ["0 faults", "1 fault", "1,000 faults"]


def test_sizes_are_shown_as_people_read_them() -> None:
    """Bytes, then KiB to TiB with one digit behind the point; a size stands to the right like any number."""
    shown = [text_of(Size(each)) for each in (0, 1, 1023, 1024, 1536, 12_748_588, 1 << 30, 5 << 50)]
    assert shown == ["0 bytes", "1 byte", "1,023 bytes", "1.0 KiB", "1.5 KiB", "12.2 MiB", "1.0 GiB", "5,120.0 TiB"]
    assert Table("T", ("size",), [(Size(5),)]).is_number(0)
