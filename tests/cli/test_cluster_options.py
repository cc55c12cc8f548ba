"""What `serve` and `read` say of options that make no sense, before Ray or a model is touched."""

import pytest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--replicas", 2], "--replicas is for replicas on Ray Serve; add --ray."),
        (["--autoscale", "1-2"], "--autoscale is for replicas on Ray Serve; add --ray."),
        (["--ray-address", "a:1"], "--ray-address is for replicas on Ray Serve; add --ray."),
        (["--ray", "--autoscale", "3"], "it must be MIN-MAX, such as 1-4."),
        (["--ray", "--autoscale", "4-2"], "it must be MIN-MAX, such as 1-4."),
        (["--ray", "--autoscale", "0-2"], "it must be MIN-MAX, such as 1-4."),
        (["--ray", "--autoscale", "1-2", "--replicas", 2], "exclude each other"),
    ],
)
def test_replicas_that_make_no_sense_are_told(run, loads, options, told):
    result = run("serve", "demo", *options)

    assert result.exit_code == 2
    assert told in result.stderr and result.stderr.count("\n") == 1
    assert loads == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ray"], "--ray writes Parquet into a folder; name it with --out."),
        (["--actors", 2], "--actors is for models on Ray; add --ray."),
        (["--shard", 2], "--shard is for models on Ray; add --ray."),
        (["--ray-address", "a:1"], "--ray-address is for models on Ray; add --ray."),
    ],
)
def test_actors_that_make_no_sense_are_told(run, loads, picture, options, told):
    result = run("read", picture, *options)

    assert result.exit_code == 2
    assert told in result.stderr
    assert loads == []


def test_parquet_goes_into_no_file(run, picture, tmp_path):
    out = tmp_path / "pages.jsonl"
    out.write_text("")

    result = run("read", picture, "--ray", "--out", out)

    assert result.exit_code == 2
    assert "is a file; Parquet goes into a folder" in result.stderr


@pytest.mark.enable_socket
def test_a_cluster_that_is_not_there_is_told_at_once(run, picture, tmp_path):
    result = run("read", picture, "--ray", "--ray-address", "127.0.0.1:1", "--out", tmp_path / "o")

    assert result.exit_code == 2
    assert "No Ray cluster is reached at 127.0.0.1:1" in result.stderr
