"""`n` over HTTP: every choice by its index, with an end of its own, and one usage for all."""

import httpx

from llavakit.serving import ServerSettings, create_app
from llavakit.values import Chunk, Usage
from tests.serving.asgi import Call
from tests.serving.conftest import CHAT, Scripted, asking, begun, saying


async def test_every_choice_streams_its_own_end_and_all_together_one_usage(client):
    backend = Scripted()
    app = client(backend)
    asked = saying(stream=True, n=3, stream_options={"include_usage": True})
    call = Call(app.app, CHAT, asked)
    channels = await begun(backend, 3)
    ends = ["length", "stop", "stop"]
    for number in (2, 0, 1):
        channels[number].put(Chunk(f"answer {number}"))
        usage = Usage(9, number + 1, 8 * bool(number))
        channels[number].put(Chunk(finish_reason=ends[number], usage=usage))
    await call.end()
    *events, total, done = call.events
    told = {}
    for event in events:
        [choice] = event["choices"]
        told.setdefault(choice["index"], []).append(choice)
        assert event["usage"] is None
    for number, choices in told.items():
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert choices[1]["delta"] == {"content": f"answer {number}"}
        assert [one["finish_reason"] for one in choices] == [None, None, ends[number]]
    assert sorted(told) == [0, 1, 2] and done == "[DONE]"
    assert total["choices"] == []
    usage = total["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 6, 15)


async def test_choices_share_the_prompt_and_their_seeds_count_up(demo_backend):
    app = create_app(demo_backend, ServerSettings(warm_up=False))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as http:
        app.state.service.readiness.begin()
        app.state.service.readiness._thread.join(60)

        async def ask(**rest):
            body = asking("Describe the picture.", temperature=2.0, max_tokens=6, **rest)
            answer = await http.post(CHAT, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        several = await ask(n=3, seed=11)
        alone = [await ask(seed=11 + number) for number in range(3)]
    texts = [choice["message"]["content"] for choice in several["choices"]]
    assert texts == [one["choices"][0]["message"]["content"] for one in alone]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    usages = [one["usage"] for one in alone]
    assert several["usage"]["prompt_tokens"] == usages[0]["prompt_tokens"]
    total = sum(usage["completion_tokens"] for usage in usages)
    assert several["usage"]["completion_tokens"] == total
