"""``distilld withdrawals``: list what left the datasets since a time or a batch."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from distilld.cli.commands import COUNT, Common, common_options, json_option
from distilld.cli.output import print_json, say, show
from distilld.cli.settings import load_settings
from distilld.core.model import UsageError
from distilld.store.queries import Views, reading
from distilld.tables import Table, counted


@click.command()
@click.option("--since", required=True, metavar="TIME|BATCH", help="What left after this time, or after this batch.")
@click.option("--limit", type=COUNT, metavar="N", default=20, show_default=True, help="The newest N; 0: all.")
@common_options
@json_option
def withdrawals(common: Common, since: str, limit: int, as_json: bool) -> None:
    """List the rows that left the datasets, with the cause, the run and the batch that withdrew them.

    A TIME is in UTC if it does not say otherwise: 2026-04-27, 2026-04-27T18:00, 2026-04-27T18:00+02:00. A BATCH is the
    id of a batch. Rows that were replaced under their id are left out. Changes nothing.
    """
    moment = _moment(since)
    settings = load_settings(common)
    with reading(settings.state, settings.root) as store:
        count, found = Views(store).withdrawals_since(moment, limit or None)
    if as_json:
        print_json({"since": moment, "count": count, "withdrawals": found})
    elif not found:
        say(f"nothing was withdrawn since {moment}")
    else:
        runs = [each.source_run_id or f"{each.chosen_run_id} over {each.rejected_run_id}" for each in found]
        rows = [(each.withdrawn_at, each.id, each.cause, run) for each, run in zip(found, runs, strict=True)]
        show(Table(f"Withdrawn since {moment}", ("withdrawn at", "id", "cause", "run"), rows))
        more = f"; the newest {len(found):,} are listed, --limit 0 lists all" if count > len(found) else ""
        say(f"{counted(count, 'row')} left the datasets{more}")


def _moment(since: str) -> str:
    """Return a time as the store writes it. The id of a batch is also its time."""
    try:
        found = datetime.fromisoformat(since)
        moment = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # in UTC it may lie outside the years 1 to 9999
        allowed = "a time such as 2026-04-27T18:00, or the id of a batch"
        raise UsageError(f"--since = {since!r}; allowed: {allowed}") from None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
