import io
import json
import os

import pytest

from llavakit.values import SamplingParams
from tests.cli.test_ask import colours


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_read_prints_a_line_for_each_page(run, fake, pdf, picture, loads):
    result = run("read", pdf, picture)
    assert (result.exit_code, result.stderr) == (0, "")
    read = lines(result)
    assert [(line["source"], line["page"]) for line in read] == [
        (str(pdf), 1), (str(pdf), 2), (str(pdf), 3), (str(picture), 1),
    ]  # fmt: skip
    assert {line["text"] for line in read} == {"a red circle"}
    assert {line["model"] for line in read} == {"demo"}
    assert [colours(request) for request in fake.requests] == [
        ["red"],
        ["green"],
        ["blue"],
        ["red"],
    ]
    assert fake.requests[0].params == SamplingParams(1024, temperature=0) and loads[0][0] == "demo"


def test_read_into_a_file_goes_on_where_it_was(run, fake, pdf, tmp_path):
    out = tmp_path / "out.jsonl"
    assert run("read", pdf, "--out", out).stdout == ""
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n") + 9])
    result = run("read", pdf, "--out", out)
    assert result.exit_code == 0 and out.read_bytes() == whole
    assert "2 pages read, 1 line was there before" in result.stderr
    refused = run("read", pdf, "--out", out, "--task", "describe")
    assert refused.exit_code == 2 and "another job" in refused.stderr
    assert run("read", pdf, "--out", out, "--task", "describe", "--restart").exit_code == 0


def test_interrupted_reading_says_how_to_go_on(run, fake, pdf, tmp_path):
    def interrupted(request):
        raise KeyboardInterrupt

    fake._answer = interrupted
    result = run("read", pdf, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 130
    assert result.stderr == "llavakit: interrupted; the same command goes on.\n"
    printed = run("read", pdf)  # nothing is kept, and nothing is promised
    assert (printed.exit_code, printed.stderr) == (130, "")


def test_lines_go_into_files_and_not_into_devices(run, pdf, tmp_path):
    result = run("read", pdf, "--out", "/dev/null")
    assert result.exit_code == 2 and "is a device or a pipe" in result.stderr
    assert run("read", pdf, "--out", "-").exit_code == 2
    os.mkfifo(tmp_path / "pipe")
    assert run("read", pdf, "--out", tmp_path / "pipe").exit_code != 0
    assert [path.name for path in tmp_path.glob("*.job")] == []


def test_one_page_is_one_page(run, pdf, tmp_path):
    out = tmp_path / "out.jsonl"
    run("read", f"{pdf}#pages=1", "--out", out)
    again = run("read", f"{pdf}#pages=1", "--out", out)
    assert again.stderr == "0 pages read, 1 line was there before.\n"


def test_read_extracts_data_of_a_schema(run, fake, pdf, tmp_path):
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    fake._answer = lambda request: '{"title": "INVOICE"}'
    result = run(
        "read", f"{pdf}#pages=2-", "--task", "extract", "--schema", tmp_path / "schema.json"
    )
    assert [line["data"] for line in lines(result)] == [{"title": "INVOICE"}] * 2
    assert fake.requests[0].params.json_schema == schema


def test_the_options_of_read(run, fake, pdf, tmp_path, loads):
    result = run(
        *("read", pdf, "--pages", "3,1", "--dpi", 36, "--prompt", "What?", "--max-tokens", 5),
        *("--text-layer", "--store", tmp_path / "store", "--out", tmp_path / "o", "--tiles", "1x2"),
        *("--page-seconds", 20, "--window", 2, "-m", "llava-1.5-7b", "--load-4bit"),
    )
    assert result.exit_code == 0, result.stderr
    first, second = (json.loads(line) for line in (tmp_path / "o").read_text().splitlines())
    assert (first["page"], second["page"], first["text_layer"]) == (3, 1, "")
    assert len(list((tmp_path / "store").rglob("*.png"))) == 2
    assert fake.requests[0].messages[-1].text == "What?" and len(fake.requests) == 4
    assert loads[0][0] == "llava-1.5-7b" and loads[0][1]["load_in_4bit"] is True


def test_a_bad_file_costs_its_own_line(run, picture, tmp_path):
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\nrubbish")
    result = run("read", tmp_path / "bad.pdf", picture)
    bad, good = lines(result)
    assert result.exit_code == 0 and good["text"] == "a red circle"
    assert bad["error"]["type"] == "DocumentError" and bad["text"] is None
    assert "bad.pdf is damaged" in result.stderr and "1 could not be read" in result.stderr


def test_read_fails_if_nothing_can_be_read(run, tmp_path):
    assert run("read", tmp_path / "gone.pdf").exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [["-"], ["a", "--task", "guess"], ["a", "--task", "extract"], ["a", "--tiles", "3"],
     ["a", "--pages", "3-1"], ["a", "--store", "x"], ["a", "--restart"],
     ["a", "--schema", "gone.json"],
     ["a", "--window", "0"]],
)  # fmt: skip
def test_read_refuses_what_makes_no_sense(run, arguments):
    result = run("read", *arguments)
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.startswith("llavakit: ")


def test_a_terminal_sees_how_far_it_is(run, pdf, tmp_path, monkeypatch):
    from rich.console import Console

    import llavakit.cli.read as module
    from llavakit.cli import terminal

    shown = io.StringIO()
    monkeypatch.setattr(module, "is_watched", lambda out: True)
    monkeypatch.setattr(
        terminal, "Console", lambda **_: Console(file=shown, force_terminal=True, width=300)
    )
    (tmp_path / "bad[red].pdf").write_bytes(b"%PDF-1.7")
    result = run("read", pdf, tmp_path / "bad[red].pdf")
    assert result.exit_code == 0 and len(lines(result)) == 4
    assert "3 pages read" in shown.getvalue() and "bad[red].pdf is damaged" in shown.getvalue()
    assert "3 pages read, 1 could not be read." in result.stderr


def test_a_folder_that_grows_and_shrinks_is_read_on(run, fake, pdf, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "out.jsonl"
    folder.mkdir()
    (folder / "b.pdf").write_bytes(pdf.read_bytes())
    (folder / "notes.docx").write_text("not a page")
    assert run("read", folder, "--out", out).exit_code == 0
    (folder / "a.pdf").write_bytes(pdf.read_bytes())
    result = run("read", folder, "--out", out)
    assert "3 pages read, 3 lines were there before" in result.stderr
    assert [json.loads(line)["source"][-5:] for line in out.read_text().splitlines()] == [
        *["a.pdf"] * 3, *["b.pdf"] * 3,
    ]  # fmt: skip
    (folder / "a.pdf").unlink()
    result = run("read", folder, "--out", out)
    assert "1 document (a.pdf)" in result.stderr and "--prune" in result.stderr
    assert len(out.read_text().splitlines()) == 6
    result = run("read", folder, "--out", out, "--prune", "--retry-failed")
    assert "Taken out" in result.stderr and len(out.read_text().splitlines()) == 3
    assert run("read", folder, "--prune").exit_code == 2


def test_a_password_is_asked_for_on_a_terminal_alone(run, fake, tmp_path, monkeypatch):
    import typer

    from llavakit.cli.read import ReadingOutput
    from tests.documents.test_archives import LOCKED

    (tmp_path / "a.pdf").write_bytes(LOCKED["pdf"])
    result = run("read", tmp_path / "a.pdf")
    assert result.exit_code == 1 and "give its password" in result.stderr
    asked = []

    def prompt(text, **options):
        assert options["hide_input"] and options["err"]
        asked.append(text)
        return "" if len(asked) > 1 else "secret"

    monkeypatch.setattr(typer, "prompt", prompt)
    told = ReadingOutput(watched=False)
    assert told.password("a.pdf") is None and not asked
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    assert (told.password("a.pdf"), told.password("a.pdf")) == ("secret", None)
    assert "a.pdf" in asked[0]
