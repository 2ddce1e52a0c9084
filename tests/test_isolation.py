"""The verbs leave the caller's process as they found it, however they end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import Tensor, nn

import eyeline
from eyeline.data.batches import evaluation_batches
from eyeline.data.preprocess import Normalization
from eyeline.data.splits import FileSplit
from eyeline.distiller import Distiller
from eyeline.isolation import as_found, warnings_in_a_line
from eyeline.observe import as_it_was
from eyeline.training.allocator import keep_freed_memory, release_freed_memory
from eyeline.training.evaluation import attention_loss, evaluate
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

pytestmark = [pytest.mark.whole, pytest.mark.unchecked]

SHORT: dict[str, Any] = {**SETTINGS, "epochs": 2, "precision": "float32"}
SIGNALS = signal.valid_signals() - {signal.SIGCHLD}  # that one torch's DataLoader takes at its first use


def world() -> dict[str, Any]:
    """All of the process that somebody else may rely on."""
    loggers = {name: log for name, log in logging.root.manager.loggerDict.items() if hasattr(log, "level")}
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "streams": (sys.stdout, sys.stderr, sys.stdin, sys.excepthook),
        "signals": {number: signal.getsignal(number) for number in SIGNALS},
        "warnings": (list(warnings.filters), warnings.showwarning, logging.getLogRecordFactory()),
        "loggers": {n: (log.level, log.propagate, list(log.handlers)) for n, log in loggers.items()},
        "random": random.getstate(),
        "numpy": [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), set(threading.enumerate())),
        "processes": set(multiprocessing.active_children()),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
        ),
        "dynamo": torch._dynamo.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "pillow": (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
    }


def anatomy(network: nn.Module) -> list[Any]:
    """Where a network lies, and how its parts are set."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return [
        [
            (name, id(t), t.device, t.dtype, t.stride(), t.data_ptr(), t._version, t.requires_grad, t.grad)
            for name, t in tensors
        ],
        [
            (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in network.named_modules()
        ],
        {name: sorted(vars(module)) for name, module in network.named_modules()},
        [module._compiled_call_impl for module in network.modules()],
    ]


@contextmanager
def unchanged(*networks: nn.Module) -> Iterator[None]:
    """The world after is the world before, what is drawn next is what would have been."""
    before, bodies = world(), [anatomy(network) for network in networks]
    try:
        yield
    finally:
        for thread in set(threading.enumerate()) - before["threads"][2]:
            thread.join(10)  # that of a loader's queue ends a moment after the loader
        after = world()
        assert after.keys() == before.keys()
        after["loggers"] = {
            name: after["loggers"][name] for name in before["loggers"]
        }  # not of new libraries
        for name, was in before.items():
            assert after[name] == was, name
        assert [anatomy(network) for network in networks] == bodies


class Moody(TinyNet):
    """A network that does something when it is called for the ``at``-th time, by whichever copy of it."""

    at, calls = 0, 0
    act: Callable[[], None] = staticmethod(lambda: None)

    def forward(self, images: Tensor) -> Tensor:
        Moody.calls += 1
        if Moody.calls == Moody.at:
            Moody.act()
        return super().forward(images)


def moody(seed: int, mode: bool = True) -> Moody:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Moody()
    # not as eyeline would have it: some of it trains, a part is frozen
    network.train(mode).low.eval()
    network.head.bias.requires_grad_(False)
    return network


def call(verb: str, folder: Path, teacher: nn.Module, run: Path) -> Any:
    out, data = str(folder / "out"), tiny_data()
    match verb:
        case "train":
            return eyeline.train(teacher, data, out, **SHORT)
        case "distill":
            return eyeline.distill(tiny_net(1), teacher, data, out, method="at+kd+hint", **SHORT)
        case "remembering":
            memory = str(folder / "memory")
            return eyeline.distill(tiny_net(1), teacher, data, out, method="at+kd", memory=memory, **SHORT)
        case "study":
            return eyeline.study(TinyNet, teacher, data, out, methods=["at"], seeds=1, **SHORT)
        case "remember":
            return eyeline.remember(TinyNet, teacher, data, str(folder / "memory"), **SHORT)
        case "look":
            return eyeline.look(teacher, picture(folder), str(folder / "look.png"))
        case "load":
            return eyeline.load("wrn_16_2.fashion_mnist")
        case "report":
            return eyeline.report(run, str(folder / "page.html"))
    raise AssertionError(verb)


def picture(folder: Path) -> str:
    path = folder / "picture.png"
    Image.new("L", (12, 12), 100).save(path)
    return str(path)


VERBS = ["train", "distill", "remembering", "study", "remember", "look", "load", "report"]
NETWORKS = {"train", "distill", "remembering", "study", "remember", "look"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eyeline.train(TinyNet, tiny_data(), str(tmp_path_factory.mktemp("run") / "r"), **SHORT).folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leaves_all_as_it_was(verb: str, tmp_path: Path, run: Path) -> None:
    teacher = moody(2)
    torch.manual_seed(3)
    with unchanged(teacher):
        call(verb, tmp_path, teacher, run)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("act", [interrupt, fail])
@pytest.mark.parametrize("verb", sorted(NETWORKS))
def test_so_does_one_that_is_stopped_or_fails(
    verb: str, act: Callable[[], None], tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = moody(2)
    monkeypatch.setattr(Moody, "calls", 0)
    whole = tmp_path / "whole"
    whole.mkdir()
    call(verb, whole, teacher, run)
    calls = Moody.calls
    monkeypatch.setattr(Moody, "act", staticmethod(act))
    stopped = 0
    for at in sorted({1, calls // 2, calls}):
        folder = tmp_path / str(at)
        folder.mkdir()
        monkeypatch.setattr(Moody, "calls", 0)
        monkeypatch.setattr(Moody, "at", at)
        with unchanged(teacher):
            try:
                call(verb, folder, teacher, run)
            except (KeyboardInterrupt, ZeroDivisionError, eyeline.InputError):
                stopped += 1
    assert stopped >= 2


def test_mistakes_leave_all_as_it_was(tmp_path: Path, run: Path) -> None:
    teacher, student, other = moody(2), tiny_net(1), tiny_net(1, classes=4)
    mistakes: list[Callable[[], Any]] = [
        lambda: eyeline.distill(student, teacher, tiny_data(), str(tmp_path / "a"), layers="nowhere"),
        lambda: eyeline.train(other, tiny_data(), str(tmp_path / "b"), **SHORT),
        lambda: eyeline.study(TinyNet, teacher, tiny_data(), str(tmp_path / "c"), parallel=2, **SHORT),
        lambda: eyeline.load(tmp_path),
        lambda: eyeline.report(tmp_path),
        lambda: eyeline.look(teacher, picture(tmp_path), str(tmp_path / "x.png"), layers="nowhere"),
    ]
    for mistake in mistakes:
        with unchanged(teacher), pytest.raises(eyeline.InputError):
            mistake()


def test_evaluation_leaves_all_as_it_was(tmp_path: Path) -> None:
    student, teacher, data = moody(1), moody(2), tiny_data()
    Image.new("RGB", (20, 24)).save(tmp_path / "a.png")
    files = FileSplit((tmp_path / "a.png",), torch.zeros(1, dtype=torch.int64))
    plain = torch.autocast("cpu", enabled=False)
    with unchanged(student, teacher):
        evaluate(student, evaluation_batches(data.validation, Normalization((0.2,), (0.2,))), lambda: plain)
        batches = evaluation_batches(data.validation, Normalization((0.2,), (0.2,)))
        with as_it_was(teacher), Distiller(student, teacher, "at") as distiller:
            attention_loss(distiller, batches, lambda: plain)
        assert list(evaluation_batches(files, Normalization((0.0,) * 3, (1.0,) * 3), size=8, workers=1))


def test_variables_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYELINE_CHANGED", "a")
    monkeypatch.setenv("EYELINE_DELETED", "b")
    before = dict(os.environ)
    with suppress(ZeroDivisionError), as_found():
        os.environ |= {"EYELINE_CHANGED": "c", "EYELINE_NEW": "d"}
        del os.environ["EYELINE_DELETED"]
        fail()
    assert dict(os.environ) == before


def test_a_fresh_process_is_left_as_it_was(tmp_path: Path) -> None:
    """Also by what the first verb imports."""
    program = f"""
import os, signal, warnings
before, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
import eyeline
for number in range(2):
    eyeline.train("wrn_10_1", "fashion_mnist_sample", {str(tmp_path)!r} + f"/{{number}}", train_size=10,
                  epochs=1, accelerator="cpu", progress=False)
    now = dict(os.environ)
    assert now == before, {{k: v for k, v in now.items() if before.get(k) != v}}
    assert signal.getsignal(signal.SIGINT) == handler
"""
    command = [sys.executable, "-c", program]
    clean = {name: value for name, value in os.environ.items() if "TORCH" not in name}  # not this process's
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not keep_freed_memory(), reason="not glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    def grown_by(release: bool) -> int:
        keep_freed_memory()
        before = resident()
        torch.ones(50_000_000)  # 200 MB
        if release:
            with as_found():
                pass
        return resident() - before

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    try:
        assert grown_by(release=False) > 150_000_000
        assert grown_by(release=True) < 50_000_000
    finally:
        release_freed_memory()


# --- what libraries warn of ---------------------------------------------------------------------------------


@contextmanager
def plain() -> Iterator[None]:
    """Warnings and log lines as in a process in which nobody handles them; pytest does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "showwarning", warnings._showwarning_orig)  # type: ignore[attr-defined]
        patch.setattr(warnings, "filters", [("default", None, Warning, None, 0)])
        for log in (logging.root, *logging.root.manager.loggerDict.values()):
            if isinstance(log, logging.Logger):
                left = [h for h in log.handlers if not type(h).__module__.startswith("_pytest")]
                patch.setattr(log, "handlers", left)
        yield


def warn(text: str, module: str = "torch.somewhere") -> None:
    warnings.warn_explicit(text, UserWarning, f"{module}.py", 7, module, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "This DataLoader will create 9 worker processes in total. Our suggested max number is 2.",
            "workers is 9, more than the cores that this process may use; fewer are faster",
        ),
        (
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 1).",
            "no GPU is used: its driver is too old for this PyTorch",
        ),
        ("The `srun` command is available on your system but is not used.", None),
        ("an unknown\n  matter", "an unknown matter"),
        ("long " * 100, "long " * 38 + "long ..."),
    ],
)
def test_a_warning_is_one_line(text: str, said: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # of different calls
        with plain(), warnings_in_a_line():
            for line in (1, 2):
                warnings.warn_explicit(text, UserWarning, "torch/a.py", line, "torch.a", {})
        assert capsys.readouterr() == ("", "" if said is None else f"eyeline: warning: {said}\n")


@pytest.mark.parametrize("name", ["torch.x", "timm", "huggingface_hub.file_download"])
def test_so_is_a_log_line_also_where_the_library_has_a_handler(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    try:
        with plain(), warnings_in_a_line():
            log.warning("a %s\nmatter", "grave")
            log.error("a grave matter")
            logging.getLogger("PIL.TiffImagePlugin").error("raw")
            log.warning("No CUDA runtime is found, using CUDA_HOME='/usr/local'")
        assert capsys.readouterr().err == "eyeline: warning: a grave matter\n"
        with plain():
            log.warning("after it")
        assert "eyeline" not in (after := capsys.readouterr().err)
        assert "after it" in after
    finally:
        log.removeHandler(handler)


def test_other_processes_of_a_run_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with plain(), warnings_in_a_line():
        warn("something")
        logging.getLogger("torch").warning("something else")
    assert capsys.readouterr() == ("", "")


def test_what_the_caller_handles_is_the_callers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler = Kept()
    for name in ("mine", "timm"):  # also on a library's logger
        logging.getLogger(name).addHandler(handler)
        with plain(), warnings_in_a_line():
            logging.getLogger(name).warning("of the caller's program")
        logging.getLogger(name).removeHandler(handler)
    with plain(), monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [handler])
        patch.setattr(warnings, "showwarning", lambda message, *_: seen.append(str(message)))
        with warnings_in_a_line():
            warn("a warning")
            warn("of an image", "PIL.Image")
            logging.getLogger("timm").warning("a line")
    assert seen == [*["of the caller's program"] * 2, "a warning", "a line"]
    assert capsys.readouterr() == ("", "")


# --- a very large picture -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder of images, one of them with a side of so many pixels (in a file of some kB)."""

    def make(side: int) -> Path:
        folder = tmp_path_factory.mktemp("large")
        for name in "ab":
            (folder / "train" / name).mkdir(parents=True)
            for number in range(3):
                Image.new("L", (40, 40), 50 * number).save(folder / "train" / name / f"{number}.png")
        Image.new("1", (side, side)).save(folder / "train" / "a" / "big.png")
        return folder

    return make


PIXELS = "it has more than 178,956,970 pixels, too many to decode; make it smaller"


def test_one_that_is_too_large_is_named(large: Callable[[int], Path]) -> None:
    folder = large(20_000)
    with pytest.raises(eyeline.InputError) as refused:
        eyeline.train("wrn_10_1", f"folder:{folder}", str(folder / "out"), **SHORT)
    assert str(refused.value) == (
        f"1 of the 7 images in {folder} cannot be read: train/a/big.png ({PIXELS}); "
        "--skip_bad_images leaves them out"
    )
    picture = folder / "train" / "a" / "big.png"
    with pytest.raises(eyeline.InputError) as refused:
        eyeline.look("wrn_16_2.fashion_mnist", str(picture), str(folder / "look.png"))
    assert str(refused.value) == f"{picture} cannot be read: {PIXELS}"


@pytest.mark.parametrize("start", [None, "fork", pytest.param("spawn", marks=pytest.mark.whole)])
def test_one_that_is_not_is_read_without_a_word(
    start: str | None, large: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    if start not in (None, *multiprocessing.get_all_start_methods()):
        pytest.skip("not on this system")
    files = sorted(large(9_500).glob("train/a/*.png"))  # of this size Pillow warns
    split = FileSplit(tuple(files), torch.zeros(len(files), dtype=torch.int64))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start, force=True)
    try:
        with plain(), warnings_in_a_line():
            views = Normalization((0.0,) * 3, (1.0,) * 3)
            (batch,) = evaluation_batches(split, views, size=8, workers=0 if start is None else 1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(batch.images) == len(files)
    assert capfd.readouterr() == ("", "")
