"""What spreadsheets, scripts and dashboards write, and what is read of it."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

import pytest

from async_refunds.cli.list_files import UnreadableError, read_list
from async_refunds.cli.refund_list import RefundList
from async_refunds.results import CancelRequest
from tests.support.terminal import emulator_of, run

if TYPE_CHECKING:
    from pathlib import Path

THEM = "acct_1Them"
TWO = [CancelRequest("re_1"), CancelRequest("pyr_2")]
THEIRS = [CancelRequest("re_1"), CancelRequest("pyr_2", THEM)]
BOM = "\ufeff"


def refund(refund_id: str, **more: object) -> dict[str, object]:
    return {"id": refund_id, "object": "refund", "amount": 5, "charge": "ch_1", **more}


PAGE = {
    "object": "list",
    "url": "/v1/refunds",
    "has_more": False,
    "data": [refund("re_1"), refund("pyr_2")],
}
EVENT = {
    "object": "event",
    "type": "refund.updated",
    "account": THEM,
    "data": {"object": refund("pyr_2"), "previous_attributes": {}},
}


def zipped(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


READ: dict[str, tuple[str | bytes, list[CancelRequest]]] = {
    # An id per line.
    "an id per line": ("re_1\npyr_2\n", TWO),
    "no line end at the end": ("re_1\npyr_2", TWO),
    "DOS line ends": ("re_1\r\npyr_2\r\n", TWO),
    "line ends of an old Macintosh": ("re_1\rpyr_2\r", TWO),
    "mixed line ends": ("re_1\rpyr_2\r\n\n", TWO),
    "comments and blank lines": ("# of May\n\nre_1\n  # re_3\n\npyr_2\n", TWO),
    "white space around": ("  re_1\t\n\u00a0pyr_2 \n", TWO),
    "zero-width spaces": ("\u200bre_1\npyr_2\u200b\n", TWO),
    "quoted": ('"re_1"\n"pyr_2"\n', TWO),
    "single quotes": ("'re_1'\n'pyr_2'\n", TWO),
    "curly quotes": ("\u201cre_1\u201d\n\u2018pyr_2\u2019\n", TWO),
    "backticks": ("`re_1`\n`pyr_2`\n", TWO),
    "commas at the ends": ("re_1,\npyr_2,\n", TWO),
    "semicolons at the ends": ("re_1;\npyr_2;\n", TWO),
    "Python or SQL literals": ("'re_1',\n'pyr_2'\n", TWO),
    "bullets": ("- re_1\n- pyr_2\n", TWO),
    "apostrophes that mark text": ("'re_1\n'pyr_2\n", TWO),
    "formulas that mark text": ('="re_1"\n="pyr_2"\n', TWO),
    "all on one line": ("re_1,pyr_2", TWO),
    "all on one line with spaces": ("re_1, pyr_2\n", TWO),
    "all on one line with semicolons": ("re_1;pyr_2;\n", TWO),
    "rows of two": (
        "re_1,pyr_2\nre_3,re_4\n",
        [*TWO, *map(CancelRequest, ("re_3", "re_4"))],
    ),
    "byte order mark": (f"{BOM}re_1\npyr_2\n", TWO),
    "joined files with marks": (f"{BOM}re_1\n{BOM}pyr_2\n", TWO),
    "end mark of DOS": ("re_1\r\npyr_2\r\n\x1a", TWO),
    "end mark of DOS in joined files": ("re_1\r\n\x1apyr_2\r\n\x1a", TWO),
    "UTF-16, little end first": (f"{BOM}re_1\r\npyr_2\r\n".encode("utf-16-le"), TWO),
    "UTF-16, big end first": (f"{BOM}re_1\npyr_2\n".encode("utf-16-be"), TWO),
    "UTF-16 without a mark": ("re_1\npyr_2\n".encode("utf-16-le"), TWO),
    "UTF-16 without a mark, big": ("re_1\npyr_2\n".encode("utf-16-be"), TWO),
    "UTF-32": (f"{BOM}re_1\npyr_2\n".encode("utf-32-le"), TWO),
    "Latin-1 comment": (b"# Caf\xe9\nre_1\npyr_2\n", TWO),
    "listed twice": ("re_1\npyr_2\nre_1\n", TWO),
    # A row for each, without a header.
    "id and note": ("re_1,paid twice\npyr_2,\n", TWO),
    "note and id": ("paid twice;re_1\n;pyr_2\n", TWO),
    "id and account": (f"re_1,\npyr_2,{THEM}\n", THEIRS),
    "account and id": (f"\tre_1\n{THEM}\tpyr_2\n", THEIRS),
    "id and charge": ("re_1,ch_1,500\npyr_2,py_1,700\n", TWO),
    # CSV.
    "header refund_id": ("refund_id\nre_1\npyr_2\n", TWO),
    "header id": ("id\nre_1\npyr_2\n", TWO),
    "header Refund ID": ("Refund ID\nre_1\npyr_2\n", TWO),
    "header refundId": ("refundId\nre_1\npyr_2\n", TWO),
    "header REFUND-ID": ("REFUND-ID\nre_1\npyr_2\n", TWO),
    "header refund.id": ("refund.id\nre_1\npyr_2\n", TWO),
    "header Stripe Refund ID": ("Stripe Refund ID\nre_1\npyr_2\n", TWO),
    "header Refund": ("Refund\nre_1\npyr_2\n", TWO),
    "header Refund IDs": ("Refund IDs\nre_1\npyr_2\n", TWO),
    "header with a mark": (f"{BOM}id\nre_1\npyr_2\n", TWO),
    "quoted header with a mark": (f'{BOM}"id","amount"\n"re_1",5\n"pyr_2",7\n', TWO),
    "refund_id before id": ("id,refund_id\nch_1,re_1\nch_2,pyr_2\n", TWO),
    "semicolons": ("amount;id\n1,5;re_1\n2,7;pyr_2\n", TWO),
    "tabs": ("amount\tid\n5\tre_1\n7\tpyr_2\n", TWO),
    "pipes": ("amount|id\n5|re_1\n7|pyr_2\n", TWO),
    "Excel's sep=;": ("sep=;\nid;amount\nre_1;5\npyr_2;7\n", TWO),
    "Excel's sep=,": ("SEP=,\r\nid,amount\r\nre_1,5\r\npyr_2,7\r\n", TWO),
    "Excel's quoted sep": ('"sep=;"\nid;amount\nre_1;5\npyr_2;7\n', TWO),
    "Excel's sep of its own": ("sep=^\nid^amount\nre_1^5\npyr_2^7\n", TWO),
    "Excel's Unicode text": (
        f"{BOM}id\tamount\r\nre_1\t5\r\npyr_2\t7\r\n".encode("utf-16-le"),
        TWO,
    ),
    "CSV of an old Macintosh": ("id,amount\rre_1,5\rpyr_2,7\r", TWO),
    "formulas in CSV": ('id,n\n"=""re_1""",1\n="pyr_2",2\n', TWO),
    "spaces after commas": ('"amount", "id"\n"5", "re_1"\n"7", "pyr_2"\n', TWO),
    "quoted commas": ('note,id\n"a, b",re_1\n"c",pyr_2\n', TWO),
    "quoted line ends": ('note,id\n"a\nb",re_1\n"c\r\nd",pyr_2\n', TWO),
    "quoted quotes": ('note,id\n"say ""no""",re_1\n,pyr_2\n', TWO),
    "empty rows of a spreadsheet": ("id,n\nre_1,1\n,\npyr_2,2\n,\n,\n", TWO),
    "rows of different length": ("n,id,x\n1,re_1\n2,pyr_2,a,b,c\n", TWO),
    "blank lines before the header": ("\n\nid\nre_1\npyr_2\n", TWO),
    "comment before the header": ("# export of May\nid,n\nre_1,1\npyr_2,2\n", TWO),
    "joined CSV files": (f"{BOM}id,n\nre_1,1\n{BOM}id,n\npyr_2,2\n", TWO),
    "numbered rows": ("#,id\n1,re_1\n2,pyr_2\n", TWO),
    "numbers with a hash": ("No.,id\n#1,re_1\n#2,pyr_2\n", TWO),
    "another encoding in a note": (b"id,note\nre_1,Caf\xe9\npyr_2,\xff\n", TWO),
    "index of pandas": (",id,amount\n0,re_1,5\n1,pyr_2,7\n", TWO),
    "export of the dashboard": (
        (
            "id,Amount,Currency,Status,Created date (UTC),Charge ID\r\n"
            "re_1,50.00,jpy,requires_action,2026-05-01 10:00,ch_1\r\n"
            'pyr_2,"1,050.00",jpy,requires_action,2026-05-01 11:00,py_2\r\n'
        ),
        TWO,
    ),
    "report of this command": (
        f"refund_id,stripe_account,outcome\nre_1,,unknown\npyr_2,{THEM},failed\n",
        THEIRS,
    ),
    "psql": (
        (
            " refund_id | amount \n-----------+--------\n re_1      |      5\n"
            " pyr_2     |      7\n(2 rows)\n\n"
        ),
        TWO,
    ),
    "MySQL": (
        (
            "+-------+--------+\n| id    | amount |\n+-------+--------+\n"
            "| re_1  |      5 |\n| pyr_2 |      7 |\n+-------+--------+\n"
            "2 rows in set (0.00 sec)\n"
        ),
        TWO,
    ),
    "Markdown": ("| id | n |\n|:---|---:|\n| re_1 | 5 |\n| pyr_2 | 7 |\n", TWO),
    # Accounts.
    "column stripe_account": (f"id,stripe_account\nre_1,\npyr_2,{THEM}\n", THEIRS),
    "column account": (f"id,account\nre_1,\npyr_2,{THEM}\n", THEIRS),
    "column Account ID": (f"Account ID;ID\n;re_1\n{THEM};pyr_2\n", THEIRS),
    "column Connected account": (
        f"Refund ID,Connected account\nre_1,\npyr_2,{THEM}\n",
        THEIRS,
    ),
    "column Stripe-Account": (f"id\tStripe-Account\nre_1\t\npyr_2\t{THEM}\n", THEIRS),
    "quoted account": (f"id,account\nre_1,\npyr_2,'{THEM}'\n", THEIRS),
    # JSON.
    "JSON lines": ('{"id":"re_1"}\n{"refund_id":"pyr_2","id":7}\n', TWO),
    "JSON lines of list --json": (
        f"{json.dumps(refund('re_1'))}\n{json.dumps(refund('pyr_2'))}\n",
        TWO,
    ),
    "JSON lines with accounts": (
        f'{{"id":"re_1","stripe_account":null}}\n{{"id":"pyr_2","account":"{THEM}"}}\n',
        THEIRS,
    ),
    "JSON lines with other names": (
        '{"refundId":"re_1"}\r\n{"Refund ID":"pyr_2"}',
        TWO,
    ),
    "JSON lines of joined files": (f'{BOM}{{"id":"re_1"}}\n{BOM}{{"id":"pyr_2"}}', TWO),
    "JSON lines in UTF-16": (
        f'{BOM}{{"id":"re_1"}}\n{{"id":"pyr_2"}}'.encode("utf-16-le"),
        TWO,
    ),
    "blank JSON lines": ('\n{"id":"re_1"}\n\n{"id":"pyr_2"}\n\n', TWO),
    "JSON array of ids": ('["re_1", "pyr_2"]', TWO),
    "JSON array over lines": ('[\n  "re_1",\n  "pyr_2"\n]\n', TWO),
    "JSON array of objects": (json.dumps([refund("re_1"), refund("pyr_2")]), TWO),
    "Stripe's list answer": (json.dumps(PAGE), TWO),
    "Stripe's list answer over lines": (json.dumps(PAGE, indent=2), TWO),
    "pages of Stripe's list, one after the other": (
        json.dumps({**PAGE, "data": [refund("re_1")]}, indent=2)
        + "\n"
        + json.dumps({**PAGE, "data": [refund("pyr_2")]}, indent=2),
        TWO,
    ),
    "pages of Stripe's list, one per line": (
        json.dumps({**PAGE, "data": [refund("re_1")]})
        + "\n"
        + json.dumps({**PAGE, "data": [refund("pyr_2")]}),
        TWO,
    ),
    "Stripe's search answer": (json.dumps({**PAGE, "object": "search_result"}), TWO),
    "a list's data alone": (json.dumps({"data": PAGE["data"]}), TWO),
    "a list without its kind": (
        json.dumps({"data": PAGE["data"], "has_more": False}, indent=2),
        TWO,
    ),
    "one refund over lines": (json.dumps(refund("re_1"), indent=2), TWO[:1]),
    "an event of a connected account": (json.dumps(EVENT), THEIRS[1:]),
}


@pytest.mark.parametrize("name", READ)
def test_list_is_read(name: str, tmp_path: Path) -> None:
    content, expected = READ[name]
    requests, bad = read(tmp_path / "list", content)
    assert bad == []
    assert requests == expected


def read(
    path: Path, content: str | bytes
) -> tuple[list[CancelRequest], list[tuple[int, str]]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    bad: list[tuple[int, str]] = []
    with RefundList() as requests:
        read_list(str(path), requests, bad.append)
        return list(requests), bad


BAD: dict[str, tuple[str | bytes, int, str]] = {
    "another id": ("re_1\nch_2\n", 2, "'ch_2' is the id of a charge"),
    "two ids with a space": ("re_1\nre_2 re_4\n", 2, "'re_2 re_4' is not a refund id"),
    "no UTF-8 in an id": (b"re_1\nre_2\xff\n", 2, "is not a refund id"),
    "no id in its column": ("n,id\n1,re_1\n2\n", 3, "'' is not a refund id"),
    "line after a long cell": ('id,n\nre_1,"a\nb"\nre_2?,\n', 4, "'re_2?' is no"),
    "text after a quote": ('id\nre_1\n"re_2"x\n', 3, "is not a line of a CSV file"),
    "a total at the end": (
        "id,sum\nre_1,5\nTotal,5\n",
        3,
        "'Total' is not a refund id",
    ),
    "an account by its name": (
        "id,account\nre_1,\nre_2,Acme\n",
        3,
        "stripe_account must",
    ),
    "an account in another column": (
        f"id,seller\nre_1,\nre_2,{THEM}\n",
        3,
        "column 'seller' holds an account: name it stripe_account",
    ),
    "an account beyond the header": (
        f"id\nre_1\nre_2,{THEM}\n",
        3,
        "column '2' holds an account",
    ),
    "two accounts without a header": (
        f"re_1,{THEM}\nre_2,{THEM},acct_2\n",
        2,
        "names more than one account",
    ),
    "JSON that is cut": (
        '{"id":"re_1"}\n{"id":\n',
        2,
        "is not a JSON object of a refund",
    ),
    "JSON of no refund": (
        '{"id":"re_1"}\n{"charge":"c"}\n',
        2,
        "has neither refund_id",
    ),
    "JSON with a number": (
        '{"id":"re_1"}\n{"id":2}\n',
        2,
        "has an id that is not text",
    ),
    "a number in JSON": ('{"id":"re_1"}\n7\n', 2, "is not a JSON object of a refund"),
    "JSON that is too deep": (
        '{"id":"re_1"}\n{"a":' + 9000 * "[" + "\n",
        2,
        "is not a JSON object of a refund",
    ),
    "two accounts in JSON": (
        f'{{"id":"re_1"}}\n{{"id":"re_2","account":"{THEM}","seller":"acct_2"}}\n',
        2,
        "names more than one account",
    ),
    "an account in JSON that is no text": (
        '{"id":"re_1"}\n{"id":"re_2","account":{"id":"acct_1"}}\n',
        2,
        "'account' is not an account id",
    ),
    "a key in JSON that may be an account": (
        '{"id":"re_1"}\n{"id":"re_2","account_name":"Acme"}\n',
        2,
        "'account_name' may name an account",
    ),
    "a list of whoever else": (
        f'{{"id":"re_1"}}\n{{"account":"{THEM}","data":[{{"id":"re_2"}}]}}\n',
        2,
        "has neither refund_id",
    ),
    "a list in a list": (
        '{"id":"re_1"}\n[{"id":"ch_1"}]\n',
        2,
        "is the id of a charge",
    ),
    "an event of something else": (
        '{"id":"re_1"}\n{"object":"event","data":{"object":{"id":"ch_1"}}}\n',
        2,
        "is the id of a charge",
    ),
    "an event of nothing": (
        '{"id":"re_1"}\n{"object":"event","data":7}\n',
        2,
        "is not a JSON object of a refund",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_line_is_named_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    content, line, reason = BAD[name]
    requests, bad = read(tmp_path / "list", content)
    ((number, said),) = bad
    assert number == line
    assert reason.lower() in said.lower()
    assert [each.refund_id for each in requests] == ["re_1"]


XLSX = zipped("[Content_Types].xml", "xl/workbook.xml")
ODS = zipped("mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "content.xml")
UNREADABLE: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "is empty"),
    "blank lines": ("\n \n", "is empty"),
    "comments": ("# later\n", "is empty"),
    "a header of nothing we know": (
        "charge,amount\nch_1,5",
        "no column refund_id or id",
    ),
    "a cut quote in the header": ('"id\nre_1', "its first line is '\"id'"),
    "a quote that is not closed": (
        'id,note\nre_1,a\nre_2,"b\nre_3,c\nre_4,d',
        "has a quote in line 3 that is not closed as it should be until line 5",
    ),
    "a quote that ends late": (
        'id,note\nre_1,"b\nre_2,c\nre_3,"d"',
        "has a quote in line 2 that is not closed as it should be until line 4",
    ),
    "a column that may be an account": (
        "id,Bank account\nre_1,7\n",
        "has a column 'Bank account' that may name accounts",
    ),
    "two columns of accounts": (
        f"id,account,stripe_account\nre_1,{THEM},\n",
        "has a column 'account' that may name accounts",
    ),
    "accounts in a numbered list": ("#,id,Account name\n1,re_1,A\n", "'Account name'"),
    "xlsx": (XLSX, "is an Excel workbook (xlsx): save its sheet as CSV"),
    "xls": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512),
        "is an Excel workbook (xls)",
    ),
    "ods": (ODS, "is a spreadsheet (ods): save its sheet as CSV"),
    "numbers": (zipped("Index/Document.iwa"), "is a Numbers spreadsheet"),
    "zip": (zipped("list.csv"), "is a zip archive: unpack it"),
    "gzip": (b"\x1f\x8b\x08\x00", "is compressed (gzip): unpack it"),
    "PDF": (b"%PDF-1.7\n", "is a PDF"),
    "RTF": (b"{\\rtf1\\ansi re_1}", "is a rich text document"),
    "HTML": ("<html><table><tr><td>re_1</td></tr></table></html>", "is HTML or XML"),
    "XML": (f'{BOM}<?xml version="1.0"?><refunds/>', "is HTML or XML"),
    "a database": (b"SQLite format 3\x00" + bytes(84), "`async-refunds resume`"),
    "binary": (b"re_1\nre_2\0\n", "is not text: line 2 holds a NUL byte"),
    "cut UTF-16": (f"{BOM}re_1\n".encode("utf-16-le") + b"r", "is damaged UTF-16"),
    "a line without end": (
        "re_1\n" + 65_537 * "x",
        "line 2 has over 65,536 characters",
    ),
    "cut JSON": ('{\n"id": "re_1"', "is not JSON"),
    "JSON that goes on as text": (f"{json.dumps(PAGE, indent=1)}\nre_3", "is not JSON"),
}


@pytest.mark.parametrize("suffix", ["xlsx", "XLSX", "ods"])
def test_workbook_that_does_not_begin_as_one_is_known_by_its_name(
    suffix: str, tmp_path: Path
) -> None:
    content = zipped("docProps/app.xml")
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path / f"list.{suffix}", content)
    told = f"({suffix.lower()}): save its sheet as CSV"
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize("name", UNREADABLE)
def test_list_that_cannot_be_trusted_is_refused_whole(
    name: str, tmp_path: Path
) -> None:
    content, reason = UNREADABLE[name]
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path / "list", content)
    assert reason in str(caught.value)


def test_file_of_json_lines_is_one_from_its_first_line(tmp_path: Path) -> None:
    requests, bad = read(tmp_path / "a.jsonl", '{"id":}\n{"id":"re_1"}\n')
    assert [number for number, _ in bad] == [1]
    assert requests == TWO[:1]
    with pytest.raises(UnreadableError, match="is empty"):
        read(tmp_path / "b.ndjson", "\n\n")


@pytest.mark.asyncio(loop_factories=["real"])
@pytest.mark.parametrize(
    "name", ["Excel's Unicode text", "Stripe's list answer over lines", "psql"]
)
async def test_command_takes_what_is_read(name: str, tmp_path: Path) -> None:
    emulator, _ = emulator_of(0)
    for each in ("re_1", "pyr_2"):
        emulator.add_refund(refund_id=each)
    content, _ = READ[name]
    path = tmp_path / "list"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    async with emulator.serve() as base_url:
        ended = await run("cancel", "--from", str(path), "--base-url", base_url)
        with path.open("rb") as file:
            again = await run(
                *("cancel", "--from", "-", "--base-url", base_url), stdin=file.fileno()
            )
    assert ended.code == again.code == 0
    assert emulator.books.cancellations == {"re_1": 1, "pyr_2": 1}


@pytest.mark.asyncio(loop_factories=["real"])
async def test_command_names_a_workbook(tmp_path: Path) -> None:
    (tmp_path / "refunds.csv").write_bytes(XLSX)
    ended = await run("cancel", "--from", "refunds.csv", folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "async-refunds: refunds.csv is an Excel workbook (xlsx): save its sheet as "
        "CSV; nothing was sent\n"
    )
