"""The arguments that say which model answers, alike in every command that takes them."""

import pytest
import typer
from typer.testing import CliRunner

from llavakit.cli.app import app
from llavakit.cli.model import ModelArguments, takes_model

EVERY = {
    "--model-path": "m",
    "--model-base": "b",
    "--conv-mode": "v1",
    "--device": "cpu",
    "--base-url": "http://x",
}


def command(**changes):
    taken = []
    program = typer.Typer()

    @program.command()
    @takes_model(**changes)
    def look(name: str, chosen: ModelArguments = ModelArguments(), twice: bool = False) -> None:  # noqa: B008
        taken.append((name, chosen, twice))

    return program, taken


def test_a_command_gets_all_of_them_as_one_object():
    program, taken = command()
    given = [word for pair in EVERY.items() for word in pair]
    result = CliRunner().invoke(program, ["n", *given, "--load-4bit", "--twice"])
    assert result.exit_code == 0, result.output
    ((name, chosen, twice),) = taken
    assert (name, twice) == ("n", True)
    assert chosen == ModelArguments("m", "b", "v1", True, False, "cpu", "http://x")
    assert chosen.given("model_base", "load_4bit", "load_8bit") == {
        "model_base": "b",
        "load_4bit": True,
    }


def test_without_options_it_is_the_bundled_model():
    program, taken = command()
    assert CliRunner().invoke(program, ["n"]).exit_code == 0
    assert taken[0][1] == ModelArguments()


def test_a_command_may_have_other_defaults():
    program, taken = command(device="cpu")
    assert CliRunner().invoke(program, ["n"]).exit_code == 0
    assert taken[0][1].device == "cpu"


# Some have the model as an argument, and a server has no server behind it.
@pytest.mark.parametrize(
    ("name", "without"),
    [
        *[(name, set()) for name in ("ask", "chat", "read", "eval", "web")],
        ("mcp", {"--model-path", "-m"}),
        ("serve", {"--model-path", "-m", "--base-url"}),
        # Servers give no embeddings.
        ("index", {"--base-url"}),
        ("search", {"--base-url"}),
    ],
)
def test_commands_that_load_a_model_name_it_alike(name, without):
    found = {
        option
        for parameter in typer.main.get_command(app).commands[name].params
        for option in parameter.opts
    }
    every = {*EVERY, "--load-4bit", "--load-8bit", "-m"}
    assert found & every == every - without


def test_options_of_a_model_in_this_process_are_refused_beside_a_server(tmp_path):
    given = ["--model-base", "b"], ["--conv-mode", "v1"], ["--load-4bit"], ["--load-8bit"]
    for option, *value in (*given, ["--device", "cpu"]):
        arguments = ["web", "--base-url", "http://127.0.0.1:1", option, *value]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        told = " ".join(result.stderr.split())
        assert f"{option} is for models in this process, not for --base-url." in told
