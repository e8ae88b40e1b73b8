"""``kvshelf plan``, in process and as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.plan.lru import lru_curve
from tests.plan.traces import BLOCK_TOKENS, conversations, write_mooncake

TRACE = conversations(120)
FOOTPRINT = TRACE.distinct_blocks


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_mooncake(tmp_path / "trace.jsonl", TRACE)


def plan(trace: Path, *arguments: str) -> int:
    return main(["plan", str(trace), "--block-tokens", str(BLOCK_TOKENS), *arguments])


def test_the_answer_is_a_table(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(trace) == 0
    first, second, empty, head, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("120 requests, ") and "131,072 bytes a token" in first
    assert "loading is faster above 4.9 GB/s" in second and not empty
    assert head.split("  ")[0] == "POLICY" and head.endswith("LOAD S") and len(rows) == 7
    last = rows[-1].split()
    hits = 100 * lru_curve(TRACE).hits[-1] * BLOCK_TOKENS / TRACE.prompt_tokens.sum()
    assert last[0] == "lru" and last[2] == "100.0" and last[3] == f"{hits:.2f}"


def test_json_is_complete(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--policy", "lru,kvshelf,lru", "--capacity", "100MB, 20MB")
    prices = ("--gpu-hour-price", "2", "--gb-month-price", "0.1", "--duration", "60")
    assert plan(trace, *options, *prices, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in answer["rows"]] == ["lru", "lru", "kvshelf", "kvshelf"]
    chunk = 4096 + BLOCK_TOKENS * 131_072
    assert answer["rows"][1]["capacity_bytes"] == int(1e8 // chunk) * chunk
    assert answer["footprint_bytes"] == FOOTPRINT * chunk
    row = answer["rows"][0]
    assert row["net_a_month"] == pytest.approx(row["value_a_month"] - row["cost_a_month"])
    assert answer["break_even"]["best_bytes"] > 0 and answer["replay"] == []
    assert answer["rates"]["prefill_tokens_per_second"] == 37_600


def test_prices_say_what_pays_for_itself(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(trace, "--gpu-hour-price", "2", "--gb-month-price", "0.1") == 0
    out = capsys.readouterr().out
    assert "GAIN/MONTH" in out and "pay for themselves (LRU)" in out
    assert plan(trace, "--gpu-hour-price", "2", "--gb-month-price", "1e9") == 0
    assert "no capacity pays for itself" in capsys.readouterr().out


def test_a_slow_mount_is_told(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(trace, "--load-bytes-per-second", "2GB") == 0
    assert "loading is slower: kvshelf would compute" in capsys.readouterr().out


def test_the_models_shape(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def token_bytes(*arguments: str) -> int:
        assert plan(trace, *arguments, "--json") == 0
        return int(json.loads(capsys.readouterr().out)["token_bytes"])

    config = tmp_path / "config.json"
    config.write_text(
        '{"num_hidden_layers": 10, "num_attention_heads": 8, "hidden_size": 512, '
        '"num_key_value_heads": 2}'
    )
    assert token_bytes("--config", str(config)) == 2 * 10 * 2 * 64 * 2
    assert token_bytes("--config", str(config), "--dtype-bytes", "1") == 2 * 10 * 2 * 64
    assert token_bytes("--config", str(config), "--tensor-parallel", "4") == 2 * 10 * 4 * 64 * 2
    assert token_bytes("--layers", "3", "--mla", "--head-dim", "576") == 3 * 576 * 2


def test_a_replay_is_as_simulated(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(trace, "--replay", str(tmp_path / "shelf"), "--replay-requests", "80") == 0
    [line] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("replay")]
    assert "80 requests" in line and line.endswith("simulated: as simulated")
    assert plan(trace, "--replay", str(tmp_path / "shelf")) == 2
    assert "absent or empty" in capsys.readouterr().err


def test_a_replay_that_differs_is_a_finding(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvshelf.plan import replay

    monkeypatch.setattr(replay._Player, "_touch", lambda *_: None)
    monkeypatch.setattr(replay._Player, "_evict", lambda *_: None)
    assert plan(trace, "--replay", str(tmp_path / "shelf")) == 1
    assert capsys.readouterr().out.endswith("NOT as simulated\n")


def test_a_plot(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra kvshelf[plot] is not installed")
    assert plan(trace, "--plot", str(tmp_path / "plan.png")) == 0
    assert (tmp_path / "plan.png").stat().st_size > 1000
    assert plan(trace, "--plot", str(tmp_path / "no" / "plan.png")) == 2
    assert "--plot" in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plan(trace, "--plot", str(tmp_path / "plan.png")) == 2
    assert "pip install 'kvshelf[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu-hour-price", "2"], "allowed only together"),
        (["--config", "/nowhere/config.json"], "/nowhere/config.json: No such file"),
        (["--tensor-parallel", "3"], "ranks=3: must divide kv_heads=8"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    trace: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(trace, *arguments) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("kvshelf: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policy", "mru"],
        ["--policy", "optimum"],
        ["--capacity", "0"],
        ["--capacity", "1,x"],
        ["--layers", "0"],
        ["--load-bytes-per-second", "nan"],
        ["--load-bytes-per-second", "1e-320"],
        ["--format", "xml"],
        ["--gb-month-price", "-1"],
    ],
)
def test_wrong_options_say_what_is_allowed(
    trace: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan(trace, *arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert arguments[0] in err and ("allowed" in err or "choose from" in err)


def test_prices_need_the_time_in_which_requests_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,prefix_group\n600,a\n900,a\n")
    prices = ["--gpu-hour-price", "2", "--gb-month-price", "1"]
    assert main(["plan", str(path), *prices]) == 2
    assert "--duration" in capsys.readouterr().err
    assert main(["plan", str(path), *prices, "--duration", "10"]) == 0
    assert main(["plan", str(path)]) == 0
    assert main(["plan", str(path), "--block-tokens", "1000"]) == 2
    assert f"no prompt of {path} fills a block of 1000 tokens" in capsys.readouterr().err


def test_as_users_run_it(trace: Path, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "kvshelf.cli", "plan", *arguments]
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=120)

    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input_length": 512, "hash_ids": [1]}\nnonsense\n')
    done = command(str(bad))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"kvshelf: {bad}:2: no JSON") and done.stderr.count("\n") == 1
    assert "--gb-month-price" in command("--help").stdout


def test_nothing_heavy_is_imported_by_a_plan(trace: Path) -> None:
    code = (
        "import sys; from kvshelf.cli.main import main; "
        f"main(['plan', {str(trace)!r}, '--block-tokens', '{BLOCK_TOKENS}']); "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert "kvshelf.plan.answer" in loaded
    assert not {"matplotlib", "torch", "vllm", "kvshelf._native"} & set(loaded)
