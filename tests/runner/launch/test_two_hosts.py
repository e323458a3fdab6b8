"""One trial on two hosts: two network namespaces of this machine, joined by a cable, with a rank in each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from algoperf_torch.runner.record import read_json, read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ADDRESSES = ("10.231.77.1", "10.231.77.2")
TRIAL = ["--workload", "digits", "--submission", "torch.optim:AdamW", "--hparams", "lr=1e-2", "--seed", "5"]
EXACT = ["--clock", "steps:0.05", "--eval-period", "1", "--max-steps", "50", "--deterministic", "--threads", "1"]


@pytest.fixture
def hosts():
    """The names of two network namespaces; skipped with the reason where this machine does not allow them."""
    names = [f"algoperf-{os.getpid()}-{number}" for number in (0, 1)]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
            for number, name in enumerate(names):
                ip("-n", name, "address", "add", f"{ADDRESSES[number]}/24", "dev", f"cable{number}")
                ip("-n", name, "link", "set", f"cable{number}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"no network namespaces here: {told.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def start(host, number, out, *, setup=":"):
    """Rank `number` of two, in a namespace with a host name of its own, after the shell command `setup`."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        f"--node_rank={number}",
    ]
    meet = [f"--master_addr={ADDRESSES[0]}", "--master_port=29517"]
    trial = ["-m", "algoperf_torch.run", *TRIAL, *EXACT, "--no-compile", "--out", str(out)]
    inside = ["unshare", "--uts", "--mount", "sh", "-c", f'hostname host{number} && {setup} && exec "$@"', "sh"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *inside, *torchrun, *meet, *trial],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable{number}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    shown = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], shown


def test_two_hosts_train_as_two_ranks_of_one(hosts, tmp_path):
    codes, shown = finish([start(host, number, tmp_path / "hosts") for number, host in enumerate(hosts)])
    assert codes == [0, 0], shown
    command = [sys.executable, "-m", "algoperf_torch.cli", "run", "--ranks", "2", *TRIAL, *EXACT, "--no-compile"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "host")], env=environment, check=True, capture_output=True)
    (two,), (one,) = (list((tmp_path / name).glob("*/study_0/digits_pytorch/trial_1")) for name in ("hosts", "host"))
    rows = read_rows(two / "eval_measurements.csv")
    assert rows == read_rows(one / "eval_measurements.csv")
    assert [row["global_step"] for row in rows] == ["1", "21", "41", "50"]
    summary = read_json(two / "trial.json")
    assert summary["process"]["world_size"] == 2
    assert summary["process"]["host"] == "host0"


def test_a_directory_that_is_not_shared_is_told(hosts, tmp_path):
    out = tmp_path / "runs"
    out.mkdir()
    hide = f"mount --make-rprivate / && mount -t tmpfs none {out}"
    codes, shown = finish(
        [start(hosts[0], 0, out), start(hosts[1], 1, out, setup=hide)],
    )
    assert all(codes)
    assert f"algoperf: Rank 1 does not see {out}" in shown[0]
    assert "all hosts share" in shown[0]
    assert not list(Path(out).rglob("trial.json"))
