"""The lake in a browser: who gets in, what pages show and load, and how they look in a real one (docs/state.md)."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from distilld.core.model import EXPORT_PATHS
from tests.support.browser import Browser, browser, needs_chromium
from tests.support.command import REPOSITORY, bring, distilld, environment, phase4, rows
from tests.support.inspecting import fetched, inspecting, needs_datasette

pytestmark = needs_datasette

EVIL_LINK = "https://evil.example/steal?run"
EVIL_MARKUP = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
HIDDEN_LINK = f"\n {EVIL_LINK}"
SPACED = " a run "
SCORED = "data/scored-runs/2026/03/01/audits.jsonl"
STORE = "state/distilld.db"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with withdrawals, retained rows, hostile names, and a file that waits to be read; tests only look at it."""
    root = phase4(tmp_path_factory.mktemp("inspected"))
    bring(root)
    (root / "data/scored-runs/2026/03/03/audits.jsonl").unlink()
    some = root / SCORED
    some.write_bytes(some.read_bytes().replace(b'"category":"accepted"', b'"category":"rejected"', 3))
    os.utime(some, (1, 1))
    row = rows(some)[0]
    hostile = some.with_name(f"{EVIL_MARKUP.replace('/', '')}.jsonl")
    hostile.write_text(
        "".join(
            json.dumps(row | {"evidence_run_id": each, "evidence_task_id": EVIL_LINK}) + "\n"
            for each in (EVIL_LINK, EVIL_MARKUP, HIDDEN_LINK, SPACED)
        )
    )
    bring(root)
    with some.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
    return root


@pytest.fixture(scope="module")
def address(lake: Path) -> Iterator[str]:
    """Where that lake is shown."""
    with inspecting(lake / STORE) as found:
        yield found


def withdrawn_run(lake: Path) -> str:
    """A run of which a row left."""
    return next(str(each["source_run_id"]) for each in rows(lake / EXPORT_PATHS["withdrawals_rag"]))


def every_page(lake: Path) -> dict[str, str]:
    """The pages that people come to, by name."""
    row, run = rows(lake / EXPORT_PATHS["preference"])[0], withdrawn_run(lake)
    charts = pytest.importorskip("yaml").safe_load(
        (REPOSITORY / "distilld/inspection/datasette/metadata.yaml").read_text()
    )["plugins"]["datasette-dashboards"]["distilld"]["charts"]
    return {
        "first page": "",
        "store": "distilld",
        "internal tables": "distilld?_show_hidden=1",
        "run": f"-/history?of={quote(run, safe='')}",
        "row": f"-/history?of={row['id']}",
        "hostile run": f"-/history?of={quote(EVIL_MARKUP, safe='')}",
        "unknown run": "-/history?of=nobody",
        "question": f"distilld/run?run_id={quote(run, safe='')}",
        "questions' rows": "distilld/left_lately",
        "hostile rows": f"distilld/run_history?partition__contains={quote('<img')}",
        "hostile tasks": f"distilld/row_places?task_id={quote(EVIL_LINK, safe='')}",
        **{
            name: f"distilld/{name}"
            for name in ("seen_ids", "run_history", "file_lag", "batch_history", "dataset_history", "withdrawals")
        },
        **{f"chart {name}": f"-/dashboards/distilld/{name}" for name in charts},
    }


def refused(address: str, headers: dict[str, str] | None = None, method: str = "GET") -> int:
    """The status of a request; 200 where it is answered."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers=headers or {}, method=method), timeout=30
        ) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


# who gets in


def test_who_does_not_know_the_address_gets_nothing(address: str) -> None:
    """Datasette answered every user of the machine; now each path needs the token, static files too."""
    base, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)([\w-]{32})/", address).groups()  # type: ignore[union-attr]
    other = token[:-1] + ("a" if token[-1] != "a" else "b")
    for path in ("", "distilld", "distilld.json?sql=select+1", "-/static/app.css", "-/databases.json", "favicon.ico"):
        assert refused(f"{address}{path}") == 200
        assert [refused(f"{base}{start}{path}") for start in ("", f"{other}/", "x/../")] == [403, 403, 403]


def test_token_is_another_each_time(lake: Path, address: str) -> None:
    """An address that somebody noted is worth nothing when the command has ended."""
    with inspecting(lake / STORE) as other:
        assert other.rsplit("/", 2)[1] != address.rsplit("/", 2)[1]


def test_other_host_name_gets_nothing(address: str) -> None:
    """A site that lets its own name lead to this machine could read the pages, even with the token."""
    port = address.split(":")[2].partition("/")[0]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost:9", "127.0.0.1"):
        assert refused(address, {"Host": name}) == 200
    for name in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        "",
        f"evil.example@127.0.0.1:{port}",
    ):
        assert refused(address, {"Host": name}) == 403


def test_nothing_can_be_sent(address: str) -> None:
    """Only reading is answered: nobody makes an operator's browser send a form."""
    assert [refused(f"{address}-/permissions", method=each) for each in ("POST", "PUT", "DELETE")] == [403] * 3


# what pages load and link to


def test_policy_lets_pages_load_nothing_from_elsewhere(lake: Path, address: str) -> None:
    """Each page has the policy; every script of a page is marked, and the mark is another in each process."""
    for name, path in every_page(lake).items():
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as response:
            policy, page = str(response.headers["content-security-policy"]), response.read().decode()
            assert response.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy
        (nonce,) = re.findall(r"script-src 'self' 'nonce-([\w-]{32})';", policy)
        assert page.count("<script") == page.count(f'<script nonce="{nonce}"') > 0, name
        assert not re.findall(r"\son\w+=", re.sub(r"&lt;.*?&gt;", "", page)), name


def test_run_ids_are_no_links_to_elsewhere(lake: Path, address: str) -> None:
    """Datasette makes a link of a text that looks like one: a producer could send an operator anywhere."""
    for path in every_page(lake).values():
        page = fetched(address, path)
        assert "window.hit=1</script>" not in page
        links = [html.unescape(each) for each in re.findall(r'(?:href|src|action)="([^"]*)"', page)]
        own = f"/{address.split('/')[3]}/"
        outside = {each for each in links if not each.startswith((own, address, "#", "?")) and each}
        assert outside <= {"https://datasette.io/"}, path
    page = fetched(address, every_page(lake)["hostile rows"])
    shown = {html.unescape(text) for text in re.findall(r'history\?of=[^"]*">([^<]*)</a>', page)}
    assert {EVIL_LINK, EVIL_MARKUP} <= shown
    assert EVIL_LINK in fetched(address, every_page(lake)["hostile tasks"]).partition("<tbody>")[2]


# what they show


def test_run_and_row_have_a_page_each(lake: Path, address: str) -> None:
    """The page of a run says what 'explain' says, that of a row what 'show' says; rows and runs lead to each other."""
    run, row, page = withdrawn_run(lake), rows(lake / EXPORT_PATHS["preference"])[0], ""
    for path, words in (
        (f"-/history?of={quote(run, safe='')}", ("explain", run)),
        (f"-/history?of={row['id']}", ("show", row["id"])),
    ):
        page = fetched(address, path)
        text = html.unescape(re.sub(r"<[^>]*>", "", page.partition("<pre")[2].partition("</pre>")[0])).partition(">")[2]
        told = distilld(*words, "--root", lake, cwd=lake).out
        assert [line.strip() for line in text.splitlines() if line.strip()] == [
            line.strip() for line in told.splitlines() if line.strip()
        ]
        assert re.search(r'href="[^"]*/-/history\?of=(rag|sft|pref)-[0-9a-f]{16}"', page)
    assert f'history?of={quote(str(row["chosen_run_id"]), safe="")}"' in page
    assert "nobody" in fetched(address, "-/history?of=nobody")


def test_white_space_belongs_to_a_run(lake: Path, address: str) -> None:
    """A run's id may begin and end with it; around the id of a row it was typed by mistake."""
    assert ".jsonl:3" in html.unescape(fetched(address, f"-/history?of={quote(SPACED)}"))
    row = rows(lake / EXPORT_PATHS["preference"])[0]["id"]
    assert "row <a " in fetched(address, f"-/history?of=%20{row}%20")


def test_wrong_address_prints_nothing(lake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Datasette printed a traceback with all variables, which took seconds of the time of every other page."""
    with inspecting(lake / STORE) as address:
        for path in ("nothing", "-/dashboards/nothing", "distilld/nothing", "distilld?sql=delete+from+batches"):
            assert refused(f"{address}{path}") in {400, 404}
    assert capfd.readouterr().err == ""


def test_dashboard_says_what_is_wrong(lake: Path, address: str) -> None:
    """The first page is the dashboard; it names each problem that 'health' names, with its remedy."""
    page = fetched(address, "")
    problems = distilld("health", "--root", lake, "--json", cwd=lake).json["problems"]
    assert "no_writer" in {each["name"] for each in problems}
    for each in problems:
        assert f"<strong>{each['name']}</strong>" in page
        assert each["remedy"] in html.unescape(page)
    shown = json.loads(
        fetched(address, "distilld.json?" + urlencode({"sql": "SELECT unread_files()", "_shape": "arrays"}))
    )
    assert [each["path"] for each in json.loads(shown["rows"][0][0])] == [SCORED]


def test_internal_tables_are_hidden_and_codes_are_words(address: str) -> None:
    """What people do not ask for is hidden, views come with a title, and a code of the store is shown as a word."""
    tables = json.loads(fetched(address, "distilld.json"))["tables"]
    assert {each["name"] for each in tables if not each["hidden"]} == {"withdrawals", "retained_rows"}
    page = fetched(address, "distilld")
    assert page.index("What became of a run?") < page.index(">Rows of the datasets</a>") < page.index("internal tables")
    for name in ("row_places", "totals", "pairs"):
        assert ">exported</td>" in fetched(address, f"distilld/{name}")
    assert ">rejected</td>" in fetched(address, "distilld/pairs")
    for name in ("quarantine_by_reason", "held_back"):
        for reason in ("category_disallowed", "invalid_preference_pairing"):
            assert f'/distilld/rows_of_a_reason?reason={reason}">{reason}</a>' in fetched(address, f"distilld/{name}")
            assert "history?of=" in fetched(address, f"distilld/rows_of_a_reason?reason={reason}")


def test_numbers_lead_to_the_rows_that_they_stand_for(lake: Path, address: str) -> None:
    """The number of a batch, a partition or a place is a link to its row, in words; one that stands for none is not."""
    with closing(sqlite3.connect(f"file:{lake / STORE}?mode=ro", uri=True)) as store:
        walk, partition, path, line, batch, batch_id = store.execute(
            "SELECT walk, partition_id, partition, line, batch, batch_id FROM row_places"
            " JOIN batches ON batch = rag_batch ORDER BY walk LIMIT 1"
        ).fetchone()
        (pairs,) = store.execute("SELECT count(*) FROM pairs").fetchone()
    page = html.unescape(fetched(address, f"distilld/row_places?walk={walk}"))
    links = {
        f"scored_rows/{walk}": f"{path}:{line}", f"batches/{batch}": batch_id, f"partitions/{partition}": path
    }  # fmt: skip
    for leads_to, text in links.items():
        assert f'/distilld/{leads_to}">{text}</a>' in page
        assert f">{leads_to.replace('/', ': ')}</h1>" in fetched(address, f"distilld/{leads_to}")
    assert fetched(address, "distilld/pairs?_size=max").count("/distilld/partitions/") == 2 * pairs
    assert f">{path}</a>" in html.unescape(fetched(address, f"distilld/files?partition_id={partition}"))
    shown = fetched(address, "distilld?" + urlencode({"sql": "SELECT 0 AS batch"}))
    assert "/distilld/batches/" not in shown.partition("<tbody>")[2]


# where it cannot


def test_port_that_is_taken_is_told_with_what_to_do(lake: Path) -> None:
    """Another program listens there, such as an inspect that still runs."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = distilld("inspect", "--state", lake / STORE, "--port", str(port), cwd=lake)
    assert ran.code == 1
    (line,) = ran.errors
    assert line.startswith(f"distilld: cannot listen on port {port} of 127.0.0.1: Address already in use")
    assert line.endswith("(give another --port; 0 takes any that is free)")


def test_inspect_names_a_store_that_is_not_there(tmp_path: Path) -> None:
    """'make inspect' without a store says where it looked."""
    done = subprocess.run(
        ["make", "-s", "-C", str(REPOSITORY), "-o", ".venv/.installed-inspection", "inspect",
         f"BIN={Path(sys.executable).parent}", f"STORE={tmp_path / 'none.db'}"],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode != 0
    assert f"there is no state store at {tmp_path / 'none.db'}" in done.stderr


def test_inspect_without_its_extra_says_how_to_get_it(lake: Path) -> None:
    """The command is there without Datasette, and names the extra."""
    code = "import sys; sys.modules['datasette'] = None; from distilld.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "--root", str(lake)],
        capture_output=True, text=True, check=False, cwd=lake, env=environment(),
    )  # fmt: skip
    remedy = f"{sys.executable} -m pip install 'distilld[inspect]'"
    told = f"distilld: inspect needs datasette, which is not installed ({remedy})\n"
    assert (done.returncode, done.stderr) == (1, told)


# in a real browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """A browser."""
    with browser() as found:
        yield found


MARKS = """new Promise(done => {
    const count = () => Object.fromEntries(Array.from(document.querySelectorAll('[id^="chart-"]'))
        .filter(each => each.matches('.dashboard-card-chart, .chart-container'))
        .map(each => [each.id, each.querySelectorAll('svg .role-mark path').length]));
    const until = Date.now() + 30000;
    const look = () => Object.values(count()).every(each => each) || Date.now() > until
        ? done(count()) : setTimeout(look, 50);
    look();
})"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@needs_chromium
@pytest.mark.parametrize("width", [1280, 420])
def test_every_page_is_readable(lake: Path, address: str, window: Browser, width: int) -> None:
    """Each page renders without an error on the console, each chart has its marks, and no page is wider than its window."""
    charts: dict[str, Any] = {}
    for name, path in every_page(lake).items():
        window.visit(f"{address}{path}", width)
        marks = window.ask(MARKS)
        assert all(marks.values()), (name, marks)
        charts |= {f"{name} {chart}": count for chart, count in marks.items()}
        assert window.complaints == [], name
        assert window.ask(OVERFLOW) <= 0, name
        assert window.ask("document.querySelector('h1').innerText.length") > 0, name
        assert window.ask("window.hit") is None, name
    assert len(charts) == 2 * len([each for each in every_page(lake) if each.startswith("chart ")])


@needs_chromium
def test_no_script_of_a_text_runs(address: str, window: Browser) -> None:
    """A text that a page took for markup would do nothing: no script that came with data, and no handler, runs."""
    window.visit(address, 1280)
    window.ask(
        "new Promise(done => { document.addEventListener('error', () => setTimeout(done, 0), true);"
        " document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.hit=1\">'); }).then(() => 0)"
    )
    assert window.ask("window.hit") is None
    assert "Content Security Policy" in "".join(window.complaints)
