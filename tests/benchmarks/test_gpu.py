"""The benchmark of a GPU: it keeps what it measured, whatever ends it, on a machine with little."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.records import Records, brief, read

ROOT = Path(__file__).parents[2]
BARE = Path(__file__).parent / "bare"
COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--tiny"]

STAGES = """
import os, sys
from pathlib import Path
import benchmarks.gpu.machine, transformers; transformers.logging
from benchmarks.gpu.processes import Options, Stage, run_all
out = Path(os.environ["OUT"])
limits = {"hangs": float(os.environ["LIMIT"])}
leasts = {"late": 10_000.0}
def stage(name):
    run = f"tests.benchmarks.gpu_stages:{name}"
    return Stage(name, run, limits.get(name, 60.0), leasts.get(name, 1.0))


run_all([stage(name) for name in sys.argv[1:]], Options(out, out, tiny=True), 600)
"""


def environment(*paths, **more):
    path = os.pathsep.join([*map(str, paths), str(ROOT / "src"), str(ROOT)])
    return os.environ | {"PYTHONPATH": path} | more


def figures(folder, stage):
    return {line["name"]: line for line in read(folder) if line["stage"] == stage}


def wait_for(met, seconds=120.0):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def runs(process):
    """Whether a process is there and not only its remains."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def start(command, **more):
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow  # a run that is ended goes the same way, with stages that take no time
def test_a_killed_rehearsal_leaves_the_figures_so_far_and_no_process(tmp_path):
    with start([*COMMAND, "--out", str(tmp_path)]) as parent:
        try:
            wait_for(lambda: "llava, generate" in figures(tmp_path, "oracle"))
        finally:
            parent.kill()
    wait_for(lambda: not runs(figures(tmp_path, "oracle")["begun"]["value"]), 30)
    assert figures(tmp_path, "facts")["copy bandwidth"]["value"] > 0
    assert figures(tmp_path, "facts")["ended"]["ok"]
    tested = figures(tmp_path, "self-tests")
    assert {"32/32 float32", "32/8 bfloat16", "56/8 float16", "ended"} <= set(tested)
    assert all(line["ok"] for name, line in tested.items() if name != "begun")
    assert figures(tmp_path, "oracle")["llava, generate"]["value"]["answers"] == 5
    assert "ended" not in figures(tmp_path, "oracle")


def test_a_run_that_is_told_to_end_says_where_it_stood(tmp_path):
    command = [sys.executable, "-c", STAGES, "measures", "hangs", "measures"]
    with start(command, OUT=str(tmp_path), LIMIT="60") as parent:
        try:
            wait_for(lambda: "child" in figures(tmp_path, "hangs"))
            parent.terminate()
            assert parent.wait(30) != 0
        finally:
            parent.kill()
    hung = figures(tmp_path, "hangs")
    assert hung["stopped"]["error"] == "SIGTERM" and hung["before"]["value"] == 1
    assert not (runs(hung["begun"]["value"]) or runs(hung["child"]["value"]))
    assert read(tmp_path)[-1] == hung["stopped"]


@pytest.mark.slow  # a minute; the killed rehearsal has gone the same way before
def test_the_rehearsal_needs_only_what_a_bare_machine_has(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path), "--skip", "packed"],
        cwd=ROOT,
        env=environment(BARE),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = read(tmp_path)
    assert not [brief(line) for line in lines if not line.get("ok", True)]
    versions = figures(tmp_path, "facts")["versions"]["value"]
    assert versions["torch"] and not (versions["llavakit"] or versions["llguidance"])
    oracle = figures(tmp_path, "oracle")
    for name in ("llava, fp32, captured", "llava_next, fp32, captured", "llava, fp32, compiled"):
        assert oracle[name]["value"]["equal"] == oracle[name]["value"]["of"] == 10
    for how in ("captured", "compiled"):
        line = figures(tmp_path, f"7b-{how}")[f"{how}, batch 1"]
        assert line["value"]["share of the roofline"] > 0
        assert line["ran"][f"{how}_steps"] > 0
    served = figures(tmp_path, "served")["all at once, 64 together, captured"]["value"]
    assert (served["prompt tokens"], served["answer tokens"]) == (40, 8)
    profiled = figures(tmp_path, "profiles")
    assert profiled["mixed step, 2 rows"]["ran"]["captured_steps"] == 0
    assert "Self CPU" in profiled["captured replay, 1 rows"]["table"]
    assert set(figures(tmp_path, "first-token")["first token"]["value"]) == {
        "cold",
        "same image",
        "next turn",
    }
    stages = [line["stage"] for line in lines if line["name"] == "ended"]
    assert len(list(tmp_path.glob("stage-*.log"))) == len(stages) == 13


@pytest.mark.slow  # many processes
def test_a_stage_that_raises_hangs_or_dies_is_a_line_and_no_end(tmp_path):
    command = [sys.executable, "-c", STAGES, "raises", "hangs", "dies", "measures", "late"]
    more = {"OUT": str(tmp_path), "LIMIT": "2"}
    subprocess.run(command, cwd=ROOT, env=environment(**more), timeout=120, check=True)
    raised = figures(tmp_path, "raises")
    assert "no such number" in raised["first"]["error"] and raised["second"]["value"] == 2
    assert "behind all figures" in raised["failed"]["error"] and not raised["ended"]["ok"]
    hung = figures(tmp_path, "hangs")
    assert hung["before"]["value"] == 1 and hung["ended"]["error"] == "killed after 2 s"
    assert not runs(hung["child"]["value"])
    assert "signal 11" in figures(tmp_path, "dies")["ended"]["error"]
    assert figures(tmp_path, "measures")["ended"]["ok"]
    assert "needed" in figures(tmp_path, "late")["skipped"]["error"]


@pytest.mark.slow  # a fork, which is what is done elsewhere, is tested without
def test_a_stage_runs_in_a_fresh_interpreter_where_a_fork_will_not_do(tmp_path):
    options = ["--fresh", "--only", "facts", "--out", str(tmp_path)]
    subprocess.run([*COMMAND, *options], cwd=ROOT, env=environment(), check=True)
    assert figures(tmp_path, "facts")["copy bandwidth"]["value"] > 0
    assert figures(tmp_path, "facts")["ended"]["ok"]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    records = Records(tmp_path, "facts")
    records.write("one", 1)
    with (tmp_path / "figures.jsonl").open("a") as file:
        file.write('{"stage": "facts", "na')
    assert [line["name"] for line in read(tmp_path)] == ["one"]


def test_steps_that_were_not_compiled_never_pass_as_compiled():
    from benchmarks.gpu.engine import verdict

    counts = {"eager_steps": 1, "static_steps": 0, "captured_steps": 9}
    assert verdict(counts, "captured")["ok"]
    assert "does not count" in verdict(counts, "compiled")["error"]
    counts |= {"compiled_steps": 0, "compile_refused": "no compiler here"}
    assert "no compiler here" in verdict(counts, "compiled")["error"]
    assert not verdict(counts | {"compiled_steps": 4}, "compiled")["ok"]
    assert verdict(counts | {"compiled_steps": 9}, "compiled")["ok"]


def test_the_host_cost_is_measured_with_all_steps_captured(capsys, monkeypatch):
    from benchmarks import host_cost

    monkeypatch.setattr(host_cost, "ROWS", (1, 3))
    monkeypatch.setattr(sys, "argv", ["host_cost", "--rounds", "3"])
    host_cost.main()
    _, one, three, steps = capsys.readouterr().out.splitlines()
    assert float(one.split("|")[1]) > 0 and float(three.split("|")[1]) > 0
    assert int(steps.split(" captured")[0].split()[-1]) > 200


def test_figures_are_json_whatever_they_hold(tmp_path):
    with Records(tmp_path, "facts").figure("path") as line:
        line["value"] = {"where": tmp_path}
    assert json.loads((tmp_path / "figures.jsonl").read_text())["value"]["where"] == str(tmp_path)
