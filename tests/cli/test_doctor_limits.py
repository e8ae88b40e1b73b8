"""kvshelf doctor, bench and top where something is in the way: signals, little room, odd input."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvshelf.bench import Workload, shortage
from kvshelf.bench.measure import percentile
from kvshelf.cli.main import main
from kvshelf.disk.root import open_root
from kvshelf.doctor.peers import meet
from tests.cli.test_doctor import QUICK, by_check, run_json
from tests.cli.usage import refused
from tests.mounts import mounts_allowed

QUICKSTART = Path(__file__).resolve().parents[2] / "docs/start/quickstart.md"


needs_mounts = pytest.mark.skipif(
    not mounts_allowed(), reason="needs the right to mount: root with CAP_SYS_ADMIN"
)


def on_a_mount(options: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on a tmpfs at a root, in a mount namespace of its own."""
    script = f'mount -t tmpfs -o {options} none "$1"; shift; exec "$@"'
    command = [sys.executable, "-m", "kvshelf.cli", *arguments]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-euc", script, "sh", root, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["bench", "doctor"])
def test_sigterm_ends_it_as_ctrl_c_does(command: str, tmp_path: Path) -> None:
    many = {"bench": ["--rounds", "1000"], "doctor": ["--size", "1024MB"]}[command]
    line = [sys.executable, "-m", "kvshelf.cli", command, str(tmp_path), *many]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while sum(path.is_file() for path in tmp_path.rglob(".*/**/*.kv")) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and b"Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_sigterm_of_one_that_waits_for_its_peer(tmp_path: Path) -> None:
    open_root(tmp_path)
    line = [sys.executable, "-m", "kvshelf.cli", "doctor", str(tmp_path), *QUICK, "--peer"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("doctor/hello-*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["kvshelf.json"]


@pytest.mark.parametrize("call", ["write", "replace"])
def test_an_interrupt_at_any_moment_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = open_root(tmp_path / "shelf")
    real = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if call == "replace":
            real(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        meet(root, 5.0)
    assert [path.name for path in root.iterdir()] == ["kvshelf.json"]


def test_the_handler_is_as_it_was(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["doctor", str(tmp_path), *QUICK])
    assert signal.getsignal(signal.SIGTERM) is before


@needs_mounts
def test_doctor_does_not_fill_a_small_mount(tmp_path: Path) -> None:
    done = on_a_mount("size=200m", tmp_path, "doctor", str(tmp_path), "--json")
    report = json.loads(done.stdout)
    [speed] = [each for each in report["findings"] if each["check"] == "speed"]
    assert speed["severity"] == "warning" and "needs 768 MB of room" in speed["message"]
    assert done.returncode == 1 and report["rows"] == [] and report["settings"] is not None


@needs_mounts
def test_a_read_only_mount_is_said_to_be_one(tmp_path: Path) -> None:
    done = on_a_mount("ro", tmp_path, "doctor", str(tmp_path), "--quick")
    assert done.returncode == 1 and "it is mounted read-only" in done.stdout
    assert "-> mount it read-write" in done.stdout and "chgrp" not in done.stdout


def test_what_does_not_fit_into_memory_is_said(tmp_path: Path) -> None:
    workload = Workload(total_bytes=8_000_000)
    assert shortage(tmp_path, workload) == ""
    said = shortage(tmp_path, workload, memory_bytes=7_000_000)
    assert said == "needs 8 MB of memory, and there are 7"


@pytest.mark.parametrize("command", ["bench", "doctor"])
def test_memory_that_is_refused_is_no_traceback(command: str, tmp_path: Path) -> None:
    # By ulimit the allocation itself fails, whatever the machine has.
    size = "2000"
    line = [sys.executable, "-m", "kvshelf.cli", command, str(tmp_path), "--size", f"{size}MB"]
    limited = f"ulimit -v 1500000; exec {shlex.join(line)}"
    done = subprocess.run(
        ["sh", "-c", limited],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr and "--size 2.00 GB needs" in done.stdout + done.stderr
    assert done.returncode == {"bench": 2, "doctor": 1}[command]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "0MB"),
        ("--size", "-5"),
        ("--size", "99999999999MB"),
        ("--wait", "nan"),
        ("--wait", "-5"),
        ("--wait", "inf"),
    ],
)
def test_doctor_refuses_nonsense(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_root(tmp_path)
    said = refused(["doctor", str(tmp_path), *QUICK, "--peer", f"{option}={value}"], capsys)
    assert re.search(rf"{option}: '{value}': allowed is a (size|duration|number) ", said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"kv_connector_extra_config": null}', "kv_connector_extra_config is no JSON object"),
        ('{"kv_connector_extra_config": "x"}', "kv_connector_extra_config is no JSON object"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON: "),
        ("@/absent/file", "/absent/file cannot be read: No such file or directory"),
    ],
)
def test_settings_that_are_none_say_why(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run_json(capsys, "doctor", str(tmp_path), *QUICK, "--settings", given)
    [finding] = [each for each in report["findings"] if each["check"] == "settings"]
    assert status == 1 and finding["severity"] == "problem" and said in finding["message"]


def test_bench_of_what_is_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, tmp_path / "absent", file / "below"):
        assert main(["bench", str(path)]) == 10
        assert capsys.readouterr().err == f"kvshelf: {path} is no directory\n"


@pytest.mark.parametrize("picture", ["no/rates.png", "."])
def test_a_picture_that_cannot_be_written_is_said_first(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A root and a trace that are not there would be the errors that come later.
    path = tmp_path / picture
    for command in ("bench", "plan"):
        assert main([command, str(tmp_path / "absent"), "--plot", str(path)]) == 2
        assert f"--plot {path}: " in capsys.readouterr().err


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(48, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99)) == (24, 48)
    hundred = [float(value) for value in range(1, 101)]
    assert (percentile(hundred, 50), percentile(hundred, 99)) == (50, 99)
    for count in range(1, 300):
        some = hundred[:1] * (count - 1) + [9.0]
        assert percentile(some, 50) <= percentile(some, 99)
    assert percentile([1.0, 9.0], 99) == 9 and percentile([3.0], 50) == 3


def test_a_killed_doctors_files_go_and_no_others(tmp_path: Path) -> None:
    folder = open_root(tmp_path) / "doctor"
    (folder / f"hello-{'d' * 16}-0").mkdir(parents=True)
    old, young, text = f"hello-{'a' * 16}-0", f"hello-{'b' * 16}-1", '{"token": "a", "beat": 1}'
    half = f".{'a' * 16}-hello-{'a' * 16}-1"
    pair = f"{'a' * 16}-{'b' * 16}"
    talk = [f"ping-{pair}-0", f"pong-{pair}-4", f"result-{pair}", f"bye-{pair}"]
    others = [young, "hello-mine", "data", f"ping-{pair}", f"bye-{pair}-0", "pong-a-b-1"]
    target = tmp_path / "target"
    for path in (target, *(folder / name for name in (old, half, *talk, *others))):
        path.write_text(text)
    link = folder / f"hello-{'c' * 16}-0"
    link.symlink_to(target)
    for path in (*folder.iterdir(), target):
        if path.name != young:
            os.utime(path, (time.time() - 7200,) * 2, follow_symlinks=False)
    peer = ["doctor", str(tmp_path), *QUICK, "--peer", "--wait", "0.1"]
    main(peer)
    left = {path.name for path in folder.iterdir()}
    assert left == {*others, link.name, f"hello-{'d' * 16}-0"} and target.exists()


def test_a_linked_folder_of_doctors_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    open_root(root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "doctor").symlink_to(elsewhere)
    old = elsewhere / f"hello-{'a' * 16}-0"
    old.write_text("mine")
    os.utime(old, (time.time() - 7200,) * 2)
    main(["doctor", str(root), *QUICK, "--peer", "--wait", "0.1"])
    assert old.exists()


def test_the_quickstarts_commands_work_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each on what the steps before it have made."""
    root = tmp_path / "kv"
    seen = []
    blocks = re.findall(r"```bash\n(.*?)```", QUICKSTART.read_text("utf-8"), re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = line.replace("/mnt/shared/kv", str(root)).split()
        if words[0] == "mkdir":
            root.mkdir(parents=True)
        elif words[:2] == ["vllm", "serve"]:
            open_root(root)  # as the first engine does
        elif words[:2] == ["kvshelf", "bench"]:
            small = ["--size", "4MB", "--chunk-size", "1MB", "--threads", "1", "--rounds", "1"]
            assert main([*words[1:], *small]) == 0 and "tokens/s" in capsys.readouterr().out
        elif words[:2] == ["kvshelf", "ls"]:
            assert main(words[1:]) == 0 and capsys.readouterr().out
        elif words[:2] == ["kvshelf", "--version"]:
            with pytest.raises(SystemExit, match=r"^0$"):
                main(words[1:])
            assert capsys.readouterr().out.startswith("kvshelf ")
        elif words[:2] == ["kvshelf", "doctor"]:
            quick = [] if QUICK[0] in words else QUICK
            wait = ["--wait", "0.1"]
            _, report = run_json(capsys, *words[1:], *quick, *wait)
            assert "problem" not in by_check(report).values()
            messages = [finding["message"] for finding in report["findings"]]
            assert not any("no shelf yet" in message for message in messages)
        seen.append(" ".join(words[:2]))
    ours = [each for each in seen if each.startswith("kvshelf ")]
    assert ours == [f"kvshelf {each}" for each in ("--version", "doctor", "bench", "ls", "doctor")]
