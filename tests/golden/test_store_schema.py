"""The state store has the form that was agreed upon; people and their scripts read it."""

from __future__ import annotations

from pathlib import Path

from distilld.store.migrations import MIGRATIONS
from tests.golden.store_schema import schema_sql

GOLDEN = Path(__file__).with_name("store_schema.sql")


def test_the_form_of_the_store_is_the_agreed_one() -> None:
    """A change of a table, an index or a view is meant: it comes with a migration once a version is out, and here."""
    assert schema_sql() == GOLDEN.read_text(), "if it is meant: python -m tests.golden.store_schema > " + str(GOLDEN)


def test_migrations_are_only_ever_added() -> None:
    """Their names, in order; a store that was made by an older version has the first of them."""
    assert [migration.__name__ for migration in MIGRATIONS] == [
        "m001_first_version",
        "m002_indexes_of_exceptions",
        "m003_segments",
        "m004_claimants_of_an_id",
        "m005_verdicts_in_malformed_lines",
        "m006_own_looks",
        "m007_moved_lines_and_rests",
        "m008_too_many_exports",
        "m009_dataset_history",
        "m010_smaller_store",
        "m011_words_of_the_glossary",
        "m012_rows_without_a_run_judge_none",
        "m013_indexes_of_each_batch",
        "m014_kept_rows_are_vanished_rows",
        "m015_withdrawn_pairs_by_run",
        "m016_half_judged_rows",
    ]
