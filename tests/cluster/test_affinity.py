"""Which replica answers: the one that holds the beginning, else the least loaded."""

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from llavakit.cluster.affinity import Affinity, beginnings

REPLICAS = st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)
KEYS = st.lists(st.sampled_from(["k1", "k2", "k3"]), max_size=2, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from("abcdef"), KEYS, st.booleans()),
    max_size=40,
)


def told(steps, **settings):
    affinity = Affinity(**settings)
    for replica, keys, over in steps:
        affinity.took(replica, keys)
        if over:
            affinity.finished(replica)
    return affinity


@given(STEPS, REPLICAS, KEYS, st.sets(st.sampled_from("abcdef")))
def test_every_living_replica_is_ranked_once_and_no_other(steps, living, keys, avoid):
    order = told(steps).ranked(living, keys, avoid)

    assert sorted(order) == sorted(living)


@given(STEPS, REPLICAS, st.sets(st.sampled_from("abcdef")))
def test_what_is_new_goes_to_a_least_loaded_replica(steps, living, avoid):
    affinity = told(steps)

    first = affinity.ranked(living, ["never seen"], avoid)[0]

    welcome = [one for one in living if one not in avoid] or living
    assert first in welcome
    assert affinity.load(first) == min(affinity.load(one) for one in welcome)


@given(STEPS, REPLICAS, KEYS, st.integers(0, 5))
def test_a_known_beginning_goes_home_unless_home_is_too_far_ahead(steps, living, keys, ahead):
    affinity = told(steps, ahead=ahead)
    home = living[-1]
    affinity.took(home, ["mine"])
    affinity.finished(home)

    first = affinity.ranked(living, ["mine", *keys])[0]

    least = min(affinity.load(one) for one in living)
    assert affinity.load(first) <= least + ahead
    if affinity.load(home) <= least + ahead:
        assert first == home


@given(STEPS, REPLICAS, KEYS)
def test_a_replica_that_failed_a_request_is_its_last_resort(steps, living, keys):
    order = told(steps).ranked(living, keys, [living[0]])

    assert order[-1] == living[0]


@given(STEPS)
def test_loads_are_what_was_taken_and_not_finished(steps):
    affinity = told(steps)

    for name in "abcdef":
        assert affinity.load(name) == sum(
            1 for replica, _, over in steps if replica == name and not over
        )


@given(STEPS, st.integers(1, 3))
def test_memory_is_bounded(steps, most):
    assert len(told(steps, remembered=most)) <= most


def test_beginnings_of_a_replica_that_died_are_nobodys():
    affinity = Affinity()
    affinity.took("a", ["mine"])
    affinity.finished("a")

    assert affinity.ranked(["b", "c"], ["mine"]) == ["b", "c"]


def test_the_longest_beginning_decides():
    affinity = Affinity()
    for replica, keys in (("a", ["picture"]), ("b", ["picture and question"])):
        affinity.took(replica, keys)
        affinity.finished(replica)

    assert affinity.ranked(["a", "b"], ["picture and question", "picture"])[0] == "b"


def picture(data=b"pixels"):
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def words(text):
    return {"type": "text", "text": text}


def keys(*messages, **more):
    return beginnings(json.dumps({"model": "demo", "messages": messages} | more).encode())


def test_all_turns_of_a_conversation_have_one_beginning():
    first = {"role": "user", "content": [picture(), words("What is this?")]}
    answer = {"role": "assistant", "content": "A circle."}

    later = keys(first, answer, {"role": "user", "content": "Which colour?"}, temperature=1)

    assert keys(first) == later
    assert len(later) == 2


def test_questions_about_one_picture_share_a_beginning_and_others_do_not():
    def asked(data, text):
        return keys({"role": "user", "content": [picture(data), words(text)]})

    one, two, other = asked(b"1", "Colour?"), asked(b"1", "Shape?"), asked(b"2", "Colour?")

    assert one[0] != two[0]
    assert one[1] == two[1]
    assert not set(one) & set(other)


def test_conversations_of_the_responses_api_have_beginnings_too():
    def asked(given, **more):
        return beginnings(json.dumps({"model": "demo", "input": given} | more).encode())

    block = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    first = {"role": "user", "content": [block, {"type": "input_text", "text": "What?"}]}
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "a", "output": "1"}
    assert asked([first]) == asked([first, call, result]) and len(asked([first])) == 2
    assert asked("Hello") == asked([{"role": "user", "content": "Hello"}])
    assert asked("Hello") != asked("Hello", instructions="Be short.")
    assert asked([call]) == asked(3) == asked(None) == ()


def test_what_stands_before_the_first_user_message_is_a_part_of_the_beginning():
    asked = {"role": "user", "content": "Hello"}

    assert keys(asked) != keys({"role": "system", "content": "Be short."}, asked)
    assert keys(asked) != keys(asked, tools=[{"type": "function", "function": {"name": "f"}}])


def test_a_system_message_alone_ties_nobody_to_a_replica():
    system = {"role": "system", "content": "Be short."}

    one = keys(system, {"role": "user", "content": "Hello"})
    two = keys(system, {"role": "user", "content": "Good morning"})

    assert not set(one) & set(two)


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.text(), st.lists).map(
        lambda value: json.dumps({"messages": value}).encode()
    )
)
def test_what_is_no_conversation_has_no_beginning_and_harms_nobody(body):
    assert beginnings(body) == ()
