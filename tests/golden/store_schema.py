"""The state store's form as SQL. ``python -m tests.golden.store_schema`` prints it, to be kept in store_schema.sql."""

from __future__ import annotations

import tempfile
from pathlib import Path

from distilld.store.connection import Store


def schema_sql() -> str:
    """Every table, index and view of a new store, by name."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "distilld.db", Path(folder))
        found = store.connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE '%sqlite_%' ORDER BY type, name"
        ).fetchall()
        store.close()
    return "\n\n".join(f"{sql};" for (sql,) in found) + "\n"


if __name__ == "__main__":
    print(schema_sql(), end="")
