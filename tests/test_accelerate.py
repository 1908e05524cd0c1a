"""Training by several processes: as one process trains, and ending as one process ends. Two CPU processes each time."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import read_rows
from forge import files
from forge.errors import ForgeError
from forge.training import launch, ranks

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = Path("models/test-adapter")
CONFIG = Path("config/test.yaml")
TRAINING = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "lr_scheduler_type": "linear",
    "canary_steps": 0,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared") / "a forge"


@pytest.fixture
def train(checkout, prepared, write_config, run_script, monkeypatch):
    """`train(training={...})` runs fine_tune.py on a checkout whose rows are made and validated."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # two processes on one card are refused
    if prepared.is_dir():
        shutil.copytree(prepared, checkout, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copytree(ROOT / "scenarios", "scenarios", dirs_exist_ok=True)
        path = write_config(checkout)
        for name in ("download_model.py", "forge_dataset.py", "validate_dataset.py"):
            run_script(name, "--config", path, check=True)
        for name in ("ddp", "fsdp"):
            content = yaml.safe_load(Path(f"config/accelerate/{name}.yaml").read_text(encoding="utf-8"))
            Path(f"config/{name}.yaml").write_text(yaml.safe_dump({**content, "use_cpu": True}), encoding="utf-8")
        shutil.copytree(checkout, prepared, symlinks=True)

    def configure(**sections) -> Path:
        sections["training"] = {**TRAINING, **sections.get("training", {})}
        sections["evaluation"] = {"pairs": 4, "answers": 1, **sections.get("evaluation", {})}  # 208 take minutes
        return write_config(checkout, **sections)

    def run(*arguments: str, env: dict | None = None, **sections) -> subprocess.CompletedProcess:
        return run_script("fine_tune.py", "--config", configure(**sections), *arguments, env=env)

    run.configure = configure
    return run


def by(launch_file: str, **more) -> dict:
    return {"training": {"launch": f"config/{launch_file}.yaml", **more}}


def facts() -> dict:
    return json.loads((ADAPTER / "manifest.json").read_text(encoding="utf-8"))["facts"]


def curve(key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in read_rows(ADAPTER / "metrics.jsonl") if key in row]


def digest() -> str:
    return files.sha256_file(ADAPTER / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone() -> dict:
    """What one process made, filled by the first test that needs it."""
    return {}


def as_alone(train, alone: dict) -> dict:
    """The curves of the same training in one process."""
    if not alone:
        assert train().returncode == 0
        alone.update(facts=facts(), loss=curve("loss"), eval_loss=curve("eval_loss"))
        shutil.rmtree(ADAPTER)
    return alone


def require_same_training(alone: dict) -> None:
    """The same steps with the same rows: every loss within 1%, the tokens exactly."""
    found, wanted = facts(), alone["facts"]
    for key in ("loss", "eval_loss"):
        for (step, ours), (step_alone, theirs) in zip(curve(key), alone[key], strict=True):
            assert step == step_alone and math.isclose(ours, theirs, rel_tol=0.01), (key, step, ours, theirs)
    assert found["steps"] == wanted["steps"] and found["rows"] == wanted["rows"]
    assert math.isclose(found["validation_loss"], wanted["validation_loss"], rel_tol=0.01)
    assert (found["choices"]["processes"], wanted["choices"]["processes"]) == (2, 1)


def launcher(number: int, port: int) -> subprocess.Popen:
    """`accelerate launch` as a user types it on the machine of that number, of two with one process each."""
    command = ["-m", "accelerate.commands.launch", "--config_file", "config/ddp.yaml", "--num_machines", "2"]
    command += ["--machine_rank", str(number), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    return subprocess.Popen(
        [sys.executable, *command, "scripts/fine_tune.py", "--config", str(CONFIG)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_go_on_on_two_machines(train, alone):
    """Stopped by SIGTERM as make's is, and resumed by two launchers, which stand for two machines."""
    as_alone(train, alone)
    done = train(**by("ddp"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 processes, each holding the whole model" in done.stdout
    require_same_training(alone)
    whole = digest()
    assert "nothing to do" in train().stdout, "another launch is no other training"

    path = train.configure(**by("ddp"))
    command = [sys.executable, "scripts/fine_tune.py", "--config", str(path), "--force"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    next(line for line in running.stdout if line.startswith("  sft step 3/"))
    running.send_signal(signal.SIGTERM)
    said, errors = running.communicate(timeout=120)
    assert running.returncode == 75, said + errors
    assert errors == "FAIL interrupted; a checkpoint is saved\n  do run the same command again: it goes on\n"
    assert said.count("stopping after this step") == 1

    shutil.rmtree(ADAPTER)
    port = free_port()
    machines = [launcher(number, port) for number in (0, 1)]
    first, second = (machine.communicate(timeout=120)[0] for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], first + second
    assert "resuming from checkpoint-" in first and "train: wrote models/test-adapter" in first
    assert "sft step" not in second and "train:" not in second
    assert digest() == whole
    assert not list(Path("models/checkpoints").iterdir())


@pytest.mark.slow
def test_an_adapter_trained_in_shards_merges(train, alone, run_script):
    as_alone(train, alone)
    done = train(**by("fsdp"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 processes, each holding a part of the weights" in done.stdout
    require_same_training(alone)
    for name in ("verify_adapter.py", "evaluate_model.py", "merge_adapter.py", "verify_merged.py"):
        run_script(name, "--config", CONFIG, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("launch_file", [None, "ddp"])
def test_a_failure_is_told_once_and_keeps_its_code(train, launch_file):
    """The same two lines in one process and in two: rows of more tokens than a shorter limit has room for."""
    short = {"training": {"launch": launch_file and f"config/{launch_file}.yaml", "max_length": 64}}
    done = train(**short, data={"max_tokens": 64}, evaluation={"max_new_tokens": 8})
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert first.startswith("FAIL train row ") and first.endswith(" tokens, training.max_length is 64")
    assert second == "  do raise training.max_length or lower data.max_tokens"
    assert not ADAPTER.exists()


# A stand-in for a card that is full, on one of the two: no forward pass of more than one row gets through. A blank row,
# which fills the batch up to a multiple of 32 tokens, is one of those that begin at 0.
FULL = """
import torch
from forge.training import ranks, supervised
compute = supervised.Trainer.compute_loss

def full(self, model, inputs, *args, **kwargs):
    if ranks.rank() == 1 and model.training and (inputs["position_ids"] == 0).sum() > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return compute(self, model, inputs, *args, **kwargs)

supervised.Trainer.compute_loss = full
"""
KILLED = """
import os, signal
from forge.training import ranks

if ranks.rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def sabotage(code: str) -> None:
    script = Path("scripts/fine_tune.py")
    place = "    tokenizer = models"
    text = script.read_text(encoding="utf-8")
    assert place in text
    script.write_text(text.replace(place, f"    exec({code!r}, {{}})\n{place}"), encoding="utf-8")


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_makes_all_begin_with_fewer_rows(train, alone):
    as_alone(train, alone)
    sabotage(FULL)
    done = train(**by("ddp"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "out of memory with 2 rows at once: sft goes on with 1 on each of 2 processes" in done.stdout.splitlines()
    require_same_training(alone)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(train):
    sabotage(KILLED)
    done = train(**by("ddp"))
    assert done.returncode == 7
    first, second = done.stderr.splitlines()
    assert first in (
        "FAIL a training process was killed (signal 9)",
        "FAIL another process of this training ended",
    )
    assert second.startswith("  do ")


@pytest.mark.slow
def test_a_launcher_that_fails_by_itself_is_quoted(train):
    Path("config/wrong.yaml").write_text("distributed_type: MULTI_GPU\nnumber_of_gpus: 2\n", encoding="utf-8")
    done = train(**by("wrong"))
    first, second = done.stderr.splitlines()
    assert done.returncode == 7
    assert first.startswith("FAIL the launcher ended with code 1: ") and "number_of_gpus" in first
    assert second == "  do see logs/train.launcher.log"


def test_a_launch_file_that_is_not_there_is_named(checkout, write_config, run_script):
    path = write_config(checkout, base="./base", training={"launch": "config/gone.yaml"})
    done = run_script("fine_tune.py", "--config", path)
    assert done.returncode == 2
    assert done.stderr == (
        "FAIL training.launch names config/gone.yaml, which is not there\n"
        "  do name a file of config/accelerate/, or set training.launch to null\n"
    )


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_launch_files_are_accelerates(name):
    """Every key is known to this version, and nothing is left to a default of it that may change."""
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    path = ROOT / f"config/accelerate/{name}.yaml"
    found = load_config_from_file(str(path))
    assert isinstance(found, ClusterConfig)
    assert found.distributed_type == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[name]
    assert (found.num_processes, found.num_machines, found.use_cpu) == (2, 1, False)
    assert (found.fsdp_config.get("fsdp_version") == 2) == (name == "fsdp")


@pytest.mark.parametrize(
    ("rows", "accumulation", "processes", "wanted"),
    [
        (4, 2, 1, (4, 2)),
        (4, 2, 2, (4, 1)),
        (1, 8, 4, (1, 2)),
        (8, 1, 2, (4, 1)),
        (4, 3, 2, (3, 2)),
        (2, 3, 2, (1, 3)),
        (4, 2, 8, (1, 1)),
        (4, 2, 16, None),
        (3, 1, 2, None),
    ],
)
def test_rows_of_a_step_are_shared(rows, accumulation, processes, wanted):
    from forge.training.batches import shared

    assert shared(rows, accumulation, processes) == wanted
    if wanted:
        assert wanted[0] * wanted[1] * processes == rows * accumulation and wanted[0] <= rows


@pytest.mark.parametrize(("size", "processes"), [(4, 2), (2, 2), (1, 3), (3, 4)])
def test_each_step_has_the_rows_that_it_has_in_one_process(size, processes):
    """Dealt by accelerate's own sampler; blank rows fill the last step and nothing is trained twice."""
    from accelerate.data_loader import BatchSamplerShard
    from forge.training.batches import Order
    from torch.utils.data import BatchSampler

    lengths = [7 * n % 31 + 5 for n in range(29)]
    step = size * processes
    order = list(Order(lengths, step, 1))
    blanks = -len(lengths) % step
    dealt = []
    for process in range(processes):
        batches = BatchSampler(Order(lengths, step, 1, blanks), size, drop_last=False)
        dealt.append(list(BatchSamplerShard(batches, processes, process)))
    for number, batches in enumerate(zip(*dealt, strict=True)):
        rows = [row for batch in batches for row in batch if row < len(lengths)]
        assert rows == order[number * step : (number + 1) * step]
        assert all(len(batch) == size for batch in batches)


def test_the_epoch_reaches_the_order_of_a_run_that_goes_on_within_it():
    """accelerate's own loader, cut as it is on resuming; by its set_epoch alone the order stays the first epoch's."""
    from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
    from forge.training import batches
    from torch.utils.data import BatchSampler

    def rows(tell) -> list[int]:
        dealt = BatchSamplerShard(BatchSampler(batches.Order([1] * 12, None, 1), 2, drop_last=False), 2, 0)
        loader = skip_first_batches(DataLoaderShard(list(range(12)), batch_sampler=dealt), 1)
        tell(loader)
        return [row for batch in loader for row in batch.tolist()]

    order = batches.Order([1] * 12, None, 1)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert rows(lambda loader: batches.set_epoch(loader, 1)) == [*second[4:6], *second[8:10]]
    assert rows(lambda loader: loader.set_epoch(1)) == [*first[4:6], *first[8:10]], "else ours is not needed any more"


@pytest.mark.parametrize(
    ("stage", "rows", "accumulation", "cause", "remedy"),
    [
        (
            "sft",
            3,
            1,
            "3 x 1 rows a step of sft cannot be shared by 2 processes",
            "make training.per_device_train_batch_size x gradient_accumulation_steps a multiple of 2",
        ),
        (
            "kto",
            2,
            1,
            "2 x 1 rows a step of kto cannot be shared by 2 processes with 2 at once",
            "make training.preference.per_device_train_batch_size x gradient_accumulation_steps a multiple of 4",
        ),
    ],
)
def test_rows_that_cannot_be_shared_are_refused(monkeypatch, stage, rows, accumulation, cause, remedy):
    from types import SimpleNamespace

    from forge.training import stages

    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(ForgeError) as caught:
        stages.share(stage, SimpleNamespace(rows_at_once=rows, accumulation=accumulation))
    assert (caught.value.code, caught.value.cause, caught.value.remedy) == (2, cause, remedy)


def test_who_a_process_is(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    seen = [ranks.launched(), ranks.rank(), ranks.world(), ranks.is_main(), ranks.sharded()]
    assert seen == [False, 0, 1, True, False]
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not ranks.launched(), "some clusters set these for every program"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    seen = [ranks.launched(), ranks.rank(), ranks.world(), ranks.is_main(), ranks.sharded()]
    assert seen == [True, 3, 4, False, True]


def test_of_several_outcomes_the_first_failure_counts(tmp_path):
    assert launch.read_outcome(tmp_path) is None
    for rank, first in ((0, False), (1, True)):
        content = {"cause": f"of {rank}", "remedy": "r", "code": 7, "first": first, "again": False}
        files.write_json(tmp_path / f"{rank:06d}.json", content)
    assert launch.read_outcome(tmp_path)["cause"] == "of 1"
    (tmp_path / "000001.json").unlink()
    assert launch.read_outcome(tmp_path)["cause"] == "of 0", "the first one was on another machine"


def test_the_launcher_ends_with_the_process_that_started_it():
    """Even when that one is killed: else it would go on training, and hold the lock."""
    code = (
        "import subprocess, sys\n"
        "from forge.training import launch\n"
        "waiting = [sys.executable, '-c', 'import signal; print(1, flush=True); signal.pause()']\n"
        "subprocess.Popen(waiting, preexec_fn=launch.die_with_parent, start_new_session=True).wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert parent.stdout.readline() == "1\n"
    parent.kill()
    assert parent.stdout.read() == "", "the end of the pipe, which the child held, too"
