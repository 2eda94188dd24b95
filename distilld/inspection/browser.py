"""A lake in the browser: its state store in Datasette, and our own pages (docs/state.md).

The address contains a random token, which is needed for access. Data from the lake is shown as text: only scripts of
templates run, nothing is loaded from another site, and no text becomes a link to another site.
Needs the extra ``inspect``.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import socket
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import uvicorn
from datasette import hookimpl
from datasette.app import Datasette
from datasette.database import Database
from datasette.plugins import pm
from datasette.utils import is_url, parse_metadata
from datasette.utils.asgi import Request, Response
from jinja2.ext import Extension
from markupsafe import Markup, escape

from distilld.config.settings import Settings
from distilld.core.line_facts import EXPORTED, REASONS, VERDICTS, dataset_of
from distilld.inspection.explain import explain
from distilld.inspection.problem import UNKNOWN, Problem, not_known
from distilld.inspection.row_history import find_row
from distilld.inspection.status import diagnose, look
from distilld.inspection.story_text import Text, text_of_row, text_of_run
from distilld.logs import printable
from distilld.service.failure_text import explain_failure
from distilld.store.read_only import copy_store
from distilld.tables import labelled

HOST: Final = "127.0.0.1"
_HOSTS: Final = {HOST.encode(), b"localhost"}
NAME: Final = "distilld"
"""The database's name in addresses, independent of the store's file name. The named queries belong to it."""
_FOLDER: Final = Path(__file__).with_name("datasette")
_SQL_MS: Final = 10_000
_TOKEN_BYTES: Final = 24
_LONGEST: Final = 300
"""Characters. A longer URL is cut off in a cell, and a longer text does not become a link."""
_OUTCOMES: Final = {EXPORTED: "exported", **{code: reason.value for code, reason in REASONS.items()}}
_CATEGORIES: Final = {code: category.value for code, category in VERDICTS.items()}
_WORDS: Final = {
    **dict.fromkeys(("category", "rejected_category", "rest_category"), _CATEGORIES),
    **dict.fromkeys(("rag", "sft", "outcome"), _OUTCOMES),
}
_WITH_CODES: Final = {"scored_rows", "row_places", "retained_rows", "pairs", "departures", "totals", "files"}
_HISTORY: Final = "/-/history?of="
_LEADS_TO: Final = {
    **dict.fromkeys(("run_id", "source_run_id", "chosen_run_id", "rejected_run_id"), _HISTORY),
    **dict.fromkeys(("id", "rag_id", "sft_id"), _HISTORY),
    **dict.fromkeys(
        ("batch_id", "judged_in", "exported_in", "shipped_batch", "withdrawn_batch"),
        f"/{NAME}/inputs_of_a_batch?batch_id=",
    ),
    "partition": f"/{NAME}/file_lag?partition=",
    "reason": f"/{NAME}/rows_of_a_reason?reason=",
}
"""By column: the page of ours that its cells link to."""
_NUMBERS: Final = {
    **dict.fromkeys(("batch", "rag_batch", "sft_batch"), "batches"),
    **dict.fromkeys(("partition_id", "chosen_partition", "rejected_partition"), "partitions"),
    "walk": "scored_rows",
}
"""By column: the table whose rows its numbers identify."""
_LABELS: Final = {
    "batches": "SELECT batch_id FROM batches WHERE batch = ?",
    "partitions": "SELECT path FROM partitions WHERE partition_id = ?",
    "scored_rows": "SELECT partition || ':' || line FROM row_places WHERE walk = ?",
}
_ROW_ID: Final = re.compile(r"\b((?:rag|sft|pref)-[0-9a-f]{16})\b")

F = TypeVar("F", bound=Callable[..., Any])
_hook: Callable[[F], F] = hookimpl

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def serve(settings: Settings, port: int, announce: Callable[[str], None]) -> None:
    """Serve a lake on 127.0.0.1 until SIGINT or SIGTERM. Its store must exist. Call ``announce`` with the address.

    Raises:
        OperatorError: The store cannot be read.
        OSError: The port is taken.
    """
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    with ExitStack() as kept:
        listener = kept.enter_context(socket.create_server((HOST, port)))
        port = listener.getsockname()[1]
        pm.register(_Lake(settings))
        # With it, each wrong address prints a traceback with all variables, rows of the lake included.
        pm.get_plugin("datasette.handle_exception").rich = None
        path = readable(settings.state, kept)
        datasette = Datasette(
            metadata=_metadata(path),
            template_dir=str(_FOLDER / "templates"),
            settings={"base_url": f"/{token}/", "sql_time_limit_ms": _SQL_MS},
        )
        datasette.add_database(Database(datasette, path=str(path), is_mutable=True), name=NAME)
        nonce = secrets.token_urlsafe(_TOKEN_BYTES)
        datasette.jinja_env.globals["script_nonce"] = nonce
        datasette.jinja_env.add_extension(_Nonces)
        guard = _Guard(datasette.app(), f"/{token}/", nonce)
        announce(f"http://{HOST}:{port}/{token}/")
        uvicorn.Server(uvicorn.Config(guard, log_level="warning")).run(sockets=[listener])


def readable(store: Path, kept: ExitStack) -> Path:
    """Return the path of the store, or of a copy if SQLite cannot create the files that it needs next to the store."""
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        copy = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="distilld-inspect-"))) / store.name
        copy_store(store, copy, writer_runs=False)
        return copy
    return store


def _metadata(store: Path) -> dict[str, Any]:
    """Return Datasette's metadata; a table or view without a title is hidden."""
    metadata: dict[str, Any] = parse_metadata((_FOLDER / "metadata.yaml").read_text(encoding="utf-8"))
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    tables = metadata["databases"][NAME]["tables"]
    for (name,) in names:
        about = tables.setdefault(name, {})
        about["hidden"] = "title" not in about
    return metadata


class _Guard:
    """Refuses requests without the token or for another host name; keeps pages from loading from other sites."""

    def __init__(self, app: App, prefix: str, nonce: str) -> None:
        self._app = app
        self._prefix = prefix.encode()
        policy = (
            f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"referrer-policy", b"no-referrer"),  # the token is in the address
            (b"x-content-type-options", b"nosniff"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and self._allows(scope):
            await self._app(scope, receive, guarded)
        else:
            await Response.text("Forbidden: use the address that 'distilld inspect' printed.", status=403).asgi_send(
                send
            )

    def _allows(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        start = scope["raw_path"][: len(self._prefix)]
        return (
            scope["method"] in {"GET", "HEAD"}
            and len(hosts) == 1
            and hosts[0].partition(b":")[0] in _HOSTS  # any port: a tunnel may use another one
            and secrets.compare_digest(start, self._prefix)
        )


class _Nonces(Extension):
    """Adds the nonce to scripts in templates, so that no script in data runs."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:  # noqa: ARG002
        return source.replace("<script", '<script nonce="{{ script_nonce }}"')


class _Lake:
    """The Datasette plugin: what is shown of a lake in addition to the tables of its store."""

    __name__ = "distilld.inspection.browser"  # Datasette reads it from its plugins

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @_hook
    def prepare_connection(self, conn: sqlite3.Connection) -> None:
        """Give queries ``unread_files()``: the input files that wait to be read, which the store does not know."""
        conn.create_function("unread_files", 0, self._unread_files)

    @_hook
    def register_routes(self) -> list[tuple[str, Callable[..., Awaitable[Response]]]]:
        """Return our routes: the dashboard is the first page, and the history page shows a run or a row."""
        return [(r"^/$", self._first_page), (r"^/-/history$", self._history_page)]

    @_hook
    def extra_template_vars(self, template: str, datasette: Any) -> Callable[[], Awaitable[dict[str, Any]]]:
        """Return variables: for the dashboard the problems, for other pages the descriptions of tables and views."""

        async def found() -> dict[str, Any]:
            if template == "dashboard_view.html":
                return {"problems": await asyncio.to_thread(self._problems)}
            return {"described": lambda name: datasette.table_metadata(NAME, name)}

        return found

    @_hook
    def render_cell(self, value: object, column: str, table: str | None, datasette: Any) -> Any:
        """Return words for codes, hex digits for bytes, and links only to pages of this lake."""
        if isinstance(value, dict):
            value = value["value"]  # of a foreign key
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, int):
            if column in _NUMBERS and table not in (_NUMBERS[column], "batch_history"):
                return _labelled(datasette, _NUMBERS[column], value)
            return _WORDS.get(column, {}).get(value) if table in _WITH_CODES else None
        if isinstance(value, str) and value:
            if column in _LEADS_TO and len(value) <= _LONGEST:
                return _link(datasette, value, _LEADS_TO[column])
            if is_url(value.strip()):
                return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        return None

    # pages

    async def _first_page(self, datasette: Any) -> Response:
        return Response.redirect(datasette.urls.path(f"/-/dashboards/{NAME}"))

    async def _history_page(self, request: Request, datasette: Any) -> Response:
        asked = request.args.get("of") or ""
        lines = await asyncio.to_thread(lambda: list(_lines(self._history(asked), datasette)))
        page = await datasette.render_template("history.html", {"asked": asked, "lines": lines}, request=request)
        return Response.html(page)

    # contents of the pages

    def _history(self, asked: str) -> Text:
        try:
            row_id = asked.strip()  # white space can be part of a run's id alone
            if dataset_of(row_id):
                yield from text_of_row(find_row(self._settings, row_id))
            else:
                yield from text_of_run(explain(self._settings, asked))
        except UNKNOWN as error:
            text, hint = explain_failure(error)
            yield f"{text} ({hint})" if hint else text

    def _problems(self) -> list[Problem]:
        try:
            return diagnose(self._settings)
        except UNKNOWN as error:
            return [not_known(error)]

    def _unread_files(self) -> str:
        try:
            lag = look(self._settings, sizes=False).lag
        except UNKNOWN:
            lag = None  # the dashboard says why
        return json.dumps([asdict(each) for each in lag.oldest] if lag else [])


def _lines(text: Text, datasette: Any) -> Iterator[Markup]:
    """Yield a history as lines of HTML in which ids are links. No text from the lake begins another line."""

    def linked(line: str) -> Markup:
        parts = enumerate(_ROW_ID.split(printable(line)))
        return Markup("").join(_link(datasette, part) if number % 2 else part for number, part in parts)

    for each in text:
        if isinstance(each, str):
            yield linked(each)
            continue
        yield linked(each.head)
        for (label, words), line in zip(each.parts, labelled(each.parts, None), strict=True):
            is_run = label.strip() in {"chosen", "rejected"} and len(words) <= _LONGEST
            start = line.removesuffix(words)
            yield escape(start) + _link(datasette, words) if is_run and start != line else linked(line)


async def _labelled(datasette: Any, table: str, number: int) -> Markup | None:
    """Return a link to a row of the store, with its name as text; None if there is no such row."""
    found = (await datasette.get_database(NAME).execute(_LABELS[table], [number])).first()
    return Markup('<a href="{}">{}</a>').format(datasette.urls.row(NAME, table, str(number)), *found) if found else None


def _link(datasette: Any, text: str, leads_to: str = _HISTORY) -> Markup:
    return Markup('<a href="{}{}">{}</a>').format(datasette.urls.path(leads_to), quote(text, safe=""), text)
