"""Several processes on this machine, with gloo: one training, shared work, lost processes."""

import csv
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.cohorts import make_cohort
from helpers.command_line import ROOT, SMALL
from tversky_seg.data.patches.batch import Batch
from tversky_seg.data.patches.batches import numbers_of_process
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D
from tversky_seg.runtime import distributed
from tversky_seg.runtime.distributed import (
    all_gather_list,
    any_process,
    map_over_ranks,
    rank_zero_first,
    run_sharded,
    world_size,
)
from tversky_seg.training.trainer import Trainer
from tversky_seg.training.validation import Validation


class Cubes:
    """Batch k of n patches, drawn from k alone: bright cubes in noise. A process gets its share."""

    def __init__(
        self, dtype: torch.dtype, *, rank: int, size: int, batch_size: int, n_parts: int
    ) -> None:
        self.dtype = dtype
        self.batch_size = batch_size
        self.own = numbers_of_process(rank, size, batch_size=batch_size, n_parts=n_parts)

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng(step)
        target = np.zeros((self.batch_size, 1, 8, 8, 8))
        corners = rng.integers(0, 5, (self.batch_size, 3))
        for sample, corner in zip(target, corners, strict=True):
            sample[0][tuple(slice(start, start + 3) for start in corner)] = 1
        image = target + rng.normal(0, 0.5, target.shape)
        return Batch(
            image=torch.from_numpy(image[self.own]).to(self.dtype),
            target=torch.from_numpy(target[self.own]).to(self.dtype),
            components=None,
            case_ids=["a"] * len(self.own),
            starts=[[0, 0, 0]] * len(self.own),
        )


OPTIMIZERS = {
    "sgd": (torch.float64, 50, partial(torch.optim.SGD, lr=0.05, momentum=0.9)),
    "adamw": (torch.float32, 20, partial(torch.optim.AdamW, lr=0.01)),
    "deep": (torch.float64, 10, partial(torch.optim.SGD, lr=0.05)),
}


def train_in_process(
    rank: int, size: int, store: str, folder: str, name: str, n_parts: int
) -> None:
    """Train in one of `size` processes, validate three cases, and check what they share."""
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size
        )
    dtype, n_steps, optimizer = OPTIMIZERS[name]
    batch_size = 6 if n_parts == 1 else 8
    torch.manual_seed(0)
    model = UNet3D(
        in_channels=1, out_channels=1, width=4, n_levels=2, deep_supervision=int(name == "deep")
    ).to(dtype)
    computed: list[int] = []

    def double(case: int) -> torch.Tensor:
        computed.append(case)
        return torch.full((case, 2), 2.0 * case)

    def validate(network: nn.Module) -> Validation:
        results = list(map_over_ranks([1, 2, 3], double))
        assert [tuple(result.shape) for result in results] == [(1, 2), (2, 2), (3, 2)]
        return Validation({"dice": float(torch.cat(results).mean())})

    settings = {
        "max_steps": n_steps,
        "log_every": 1,
        "validate_every": n_steps,
        "checkpoint_every": n_steps,
    }
    trainer = Trainer(
        model=model,
        loss=TverskyLoss(),
        optimizer=optimizer,
        batch_size=batch_size,
        accumulate=n_parts,
        device="cpu",
        **settings,
    )
    batches = Cubes(dtype, rank=rank, size=size, batch_size=batch_size, n_parts=n_parts)
    trainer.fit(batches, Path(folder), validate=validate)
    assert computed == [1, 2, 3][rank::size]
    assert all_gather_list([rank]) == list(range(size))
    assert run_sharded(lambda cases: list(cases), [1, 2, 3, 4]) == (
        [1, 2, 3, 4] if rank == 0 else [1, 2, 3, 4][rank::size]
    )
    with rank_zero_first():
        marker = Path(folder) / "marker"
        assert marker.exists() == (rank > 0)
        marker.touch()
    if size > 1:
        # The threads of a group end with its last owner, and DDP owns it in a cycle.
        del trainer, model, validate
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def losses_of(folder: Path, *, size: int, name: str, n_parts: int = 1) -> np.ndarray:
    """The loss of each step, trained by so many processes."""
    folder.mkdir()
    arguments = (size, str(folder / "store"), str(folder), name, n_parts)
    if size == 1:
        train_in_process(0, *arguments)
    else:
        torch.multiprocessing.spawn(train_in_process, arguments, nprocs=size)
    with (folder / "metrics.csv").open() as file:
        return np.array(
            [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "loss"]
        )


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    alone, together = (losses_of(tmp_path / str(size), size=size, name="sgd") for size in (1, 2))
    assert len(alone) == 50
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    assert alone[-1] < 0.7 * alone[0]


def test_two_processes_accumulate_as_one_does(tmp_path: Path) -> None:
    """The Tversky loss is one ratio for each part, so the parts must hold the same patches."""
    alone = losses_of(tmp_path / "1", size=1, name="sgd", n_parts=2)
    together = losses_of(tmp_path / "2", size=2, name="sgd", n_parts=2)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("sgd", 1e-4), ("adamw", 1e-3)])
def test_loss_curves_agree_on_one_two_three_and_four_processes(
    tmp_path: Path, name: str, tolerance: float
) -> None:
    alone = losses_of(tmp_path / "1", size=1, name=name)
    for size in (2, 3, 4):  # four: shares of one and two patches
        together = losses_of(tmp_path / str(size), size=size, name=name)
        print(f"{name}, {size} processes: largest difference {np.abs(together - alone).max():.1e}")
        np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_deep_supervision_is_shared_by_processes(tmp_path: Path) -> None:
    alone, together = (losses_of(tmp_path / str(size), size=size, name="deep") for size in (1, 2))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-10)


# Under torchrun


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def torchrun(*words: str, n: int, folder: Path, **further: Any) -> subprocess.Popen[str]:
    """`torchrun ... train.py` on the cohort in a folder; several nodes are told where to meet."""
    manifest = folder / "cohort" / "manifest.csv"
    if not manifest.exists():
        make_cohort(manifest.parent)
    own = [word for word in words if word.startswith("--")] or ["--standalone"]
    settings = [word for word in words if not word.startswith("--")]
    data = ["data=manifest", f"data.manifest={manifest}", f"data.cache_dir={folder / 'cache'}"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *own,
        f"--nproc_per_node={n}",
        str(ROOT / "train.py"),
    ]
    words = (
        *command,
        *data,
        *SMALL,
        "trainer.threads=1",
        f"output_dir={folder / 'run'}",
        *settings,
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        words, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes, **further
    )


def finish(process: subprocess.Popen[str], *, within_s: float = 240) -> tuple[int, str]:
    output, _ = process.communicate(timeout=within_s)
    return process.returncode, output


def is_done(folder: Path) -> bool:
    return (folder / "run" / "evaluation" / "metrics.json").exists()


@pytest.mark.slow
def test_torchrun_trains_predicts_and_judges_and_one_process_speaks(tmp_path: Path) -> None:
    status, output = finish(torchrun(n=2, folder=tmp_path))
    assert status == 0, output
    assert is_done(tmp_path)
    assert output.count("6 cases") <= 1
    assert output.count("step 4: validation") == 1
    table = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    steps = [(row["step"], row["name"]) for row in csv.DictReader(table)]
    assert len(steps) == len(set(steps))


@pytest.mark.slow
def test_a_batch_that_is_too_small_for_the_processes_is_one_line(tmp_path: Path) -> None:
    status, output = finish(torchrun("trainer.batch_size=1", n=2, folder=tmp_path))
    assert status != 0
    assert output.count("error: ") == 1
    assert "error: trainer.batch_size: got 1; batch_size must be at least the 2 processes" in output


@pytest.mark.slow
def test_a_killed_process_ends_all_within_a_minute_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    process = torchrun(
        "trainer.max_steps=2000", "trainer.validate_every=2000", n=2, folder=tmp_path
    )
    wait_for(tmp_path / "run" / "checkpoints" / "last.pt")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    killed_at = time.monotonic()
    status, output = finish(process, within_s=60)
    assert status != 0
    assert time.monotonic() - killed_at < 60
    assert "Signal 9 (SIGKILL)" in output


@pytest.mark.slow
def test_processes_that_are_restarted_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    words = (
        "--standalone",
        "--max-restarts=1",
        "trainer.max_steps=60",
        "trainer.validate_every=60",
    )
    process = torchrun(*words, n=2, folder=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "last.pt")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    status, output = finish(process)
    assert status == 0, output
    assert "resuming at step" in output
    assert is_done(tmp_path)


@pytest.mark.slow
def test_two_agents_over_loopback_train_as_two_nodes(tmp_path: Path) -> None:
    meet = (
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-id=test",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
    )
    make_cohort(tmp_path / "cohort")
    agents = [torchrun(*meet, n=1, folder=tmp_path) for _ in range(2)]
    for agent in agents:
        status, output = finish(agent)
        assert status == 0, output
    assert is_done(tmp_path)


def wait_for(path: Path, *, within_s: float = 120) -> None:
    until = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.05)


@pytest.mark.parametrize("n_lost", [0, 2, 3])
def test_a_connection_that_is_lost_while_it_is_made_is_made_again(
    n_lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, waits = [], []

    def connect(backend: str, *, timeout: object, **_: object) -> None:
        tries.append(timeout)
        if len(tries) <= n_lost:
            raise RuntimeError("Gloo connectFullMesh failed")

    monkeypatch.setattr(
        distributed, "rendezvous", lambda _: iter([(torch.distributed.HashStore(), 0, 2)])
    )
    monkeypatch.setattr(distributed.dist, "init_process_group", connect)
    monkeypatch.setattr(distributed.dist.distributed_c10d, "_set_pg_timeout", waits.append)
    monkeypatch.setattr(distributed.dist, "new_group", lambda **settings: settings["timeout"])
    if n_lost == 3:
        with pytest.raises(
            distributed.LostProcess, match="process 0: the 2 processes did not meet in 3 tries"
        ):
            distributed._connect()
    else:
        assert distributed._connect() == distributed.LONGEST_WAIT
    assert tries == [distributed.CONNECT_TIMEOUT] * min(n_lost + 1, 3)
    assert waits == [distributed.STEP_TIMEOUT] * (n_lost < 3)


def test_processes_that_are_restarted_see_no_address_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store_of_torchrun = torch.distributed.HashStore()
    has_address = []

    def connect(backend: str, *, store: torch.distributed.Store, **_: object) -> None:
        has_address.append(store.check(["address"]))
        store.set("address", "here")

    monkeypatch.setattr(distributed, "rendezvous", lambda _: iter([(store_of_torchrun, 0, 2)]))
    monkeypatch.setattr(distributed.dist, "init_process_group", connect)
    monkeypatch.setattr(distributed.dist.distributed_c10d, "_set_pg_timeout", lambda _: None)
    monkeypatch.setattr(distributed.dist, "new_group", lambda **_: None)
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        distributed._connect()
    assert has_address == [False, False]


def meet_a_process_that_hangs(rank: int, store: str, result: str) -> None:
    """One of two processes; the second never comes to the step."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    distributed._set_timeout(timedelta(seconds=2))
    if rank == 1:
        time.sleep(10)
        return
    try:
        any_process(False)
    except RuntimeError as error:
        Path(result).write_text(str(distributed._is_lost_connection(error)), encoding="utf-8")


@pytest.mark.slow
def test_a_process_that_hangs_is_lost_after_the_time_of_a_step(tmp_path: Path) -> None:
    assert timedelta(minutes=1) < distributed.STEP_TIMEOUT < timedelta(hours=1)
    result = tmp_path / "result"
    arguments = (str(tmp_path / "store"), str(result))
    torch.multiprocessing.spawn(meet_a_process_that_hangs, arguments, nprocs=2)
    assert result.read_text(encoding="utf-8") == "True"


def test_alone_nothing_is_shared() -> None:
    assert world_size() == 1
    assert list(map_over_ranks([1, 2], lambda n: torch.tensor(n))) == [1, 2]
    assert run_sharded(len, [1, 2]) == 2
    assert all_gather_list(["a"]) == ["a"]
