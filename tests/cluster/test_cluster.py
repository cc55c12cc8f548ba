"""`llavakit serve --ray`: replicas in real processes, one of which is killed. Slow."""

import concurrent.futures
import json
import os
import signal
import time

import httpx
import psutil
import pytest

from tests.serving.conftest import Process, eventually

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(600)]

LONG = {"regex": "[a-z]{240}"}
"""Any model needs many tokens, and so some time, for so long a word."""
PATIENCE = 120


class Cluster(Process):
    """`llavakit serve demo --ray` with two replicas."""

    def __init__(self):
        super().__init__("--ray", "--replicas", "2", "--shutdown-seconds", "5")
        self.ready()

    def replicas(self):
        """The processes of the replicas."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if _title(one).startswith("ray::ServeReplica")]

    def serving(self):
        return httpx.get(f"{self.url}/health").json()["replicas"].get("RUNNING", 0)

    def by_replica(self, name):
        """A figure of each replica."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        found = {}
        for line in lines:
            if line.startswith(f"llavakit:{name}"):
                replica = line.split('replica="')[1].split('"')[0]
                found[replica] = found.get(replica, 0) + float(line.split()[-1])
        return found


def _title(process):
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


@pytest.fixture(scope="module")
def cluster(demo_dir):
    if not (demo_dir / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not built")
    made = Cluster()
    tree = psutil.Process(made.process.pid).children(recursive=True)
    try:
        yield made
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(60) == 0, made.lines
        _, left = psutil.wait_procs(tree, timeout=20)
        assert not left
    finally:
        for one in tree:
            if one.is_running():
                one.kill()
        made.close()


def asked(number, **more):
    text = f"Say a long word, please. This is request {number}."
    message = {"role": "user", "content": text}
    return {"model": "demo", "messages": [message], "max_tokens": 400, "seed": number} | more


def whole(cluster, number):
    """A long answer in one piece: its text."""
    body = asked(number, structured_outputs=LONG)
    answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def streamed(cluster, number, heard=lambda: None):
    """A long answer in pieces: its text, and how it ended."""
    body = asked(number, structured_outputs=LONG, stream=True)
    text, end = "", None
    with httpx.stream(
        "POST", f"{cluster.url}/v1/chat/completions", json=body, timeout=PATIENCE
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return text, "done"
            event = json.loads(data)
            if "error" in event:
                end = event["error"]["code"]
                continue
            piece = event["choices"][0]["delta"].get("content", "")
            text += piece
            if piece:
                heard()
    return text, end


def test_both_replicas_answer_and_a_conversation_stays_with_one(cluster):
    before = cluster.by_replica("request_success_total")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(len(text) == 240 for text in pool.map(lambda n: whole(cluster, n), range(4)))
    after = cluster.by_replica("request_success_total")

    assert len(after) == 2
    assert all(after[name] > before.get(name, 0) for name in after)

    for _ in range(3):  # the prompt is known to the replica that answered it first
        whole(cluster, 0)
    again = cluster.by_replica("request_success_total")
    assert sorted(again[name] - after[name] for name in after) == [0, 3]


def test_a_client_that_leaves_ends_its_request_in_the_replica(cluster):
    body = asked(77, structured_outputs={"regex": "[a-z]{3000}"}, stream=True, max_tokens=3500)
    with httpx.stream(
        "POST", f"{cluster.url}/v1/chat/completions", json=body, timeout=PATIENCE
    ) as answer:
        next(line for line in answer.iter_lines() if "content" in line and "role" not in line)

    eventually(
        lambda: cluster.by_replica("num_requests_running"), lambda one: not any(one.values())
    )
    assert sum(cluster.by_replica("engine_requests_cancelled_total").values()) >= 1


def test_of_twenty_requests_none_is_lost_or_silently_cut_when_a_replica_is_killed(cluster):
    victim, *_ = cluster.replicas()
    heard = []

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        streams = [
            pool.submit(streamed, cluster, number, lambda: heard.append(time.monotonic()))
            for number in range(100, 110)
        ]
        wholes = [pool.submit(whole, cluster, number) for number in range(110, 120)]
        eventually(lambda: len(heard), lambda many: many > 30, timeout=PATIENCE)
        os.kill(victim.pid, signal.SIGKILL)
        texts = [one.result(PATIENCE) for one in wholes]
        ends = [one.result(PATIENCE) for one in streams]

    assert cluster.wait_for("a replica was lost")  # or this would show nothing
    assert [len(text) for text in texts] == [240] * 10
    for text, end in ends:
        assert (end, len(text)) == ("done", 240) or (end == "replica_lost" and len(text) < 240)
    assert {"done", "replica_lost"} == {end for _, end in ends}


def test_throughput_returns_after_a_kill(cluster):
    eventually(cluster.serving, lambda running: running == 2, timeout=PATIENCE)
    eventually(lambda: len(cluster.by_replica("num_requests_running")), lambda many: many == 2)
    before = cluster.by_replica("request_success_total")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda number: whole(cluster, number), range(200, 220)))

    after = cluster.by_replica("request_success_total")
    assert [len(text) for text in texts] == [240] * 20
    assert all(after[name] - before[name] >= 5 for name in after)
