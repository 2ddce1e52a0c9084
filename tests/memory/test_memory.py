"""The memory itself: how targets are stored, named, and found damaged. Runs with it: tests/training."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.hashing import weights_hash
from eyeline.losses import AttentionTransfer, Target
from eyeline.memory import folder as module
from eyeline.memory.encoding import encode
from eyeline.memory.folder import Memory, remove_memories
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from tiny import tiny_net

CPU = torch.device("cpu")
KEY = {"teacher": "0" * 64, "view_seed": 0, "memory_precision": "float32"}
fork = multiprocessing.get_context("fork")


def restored(target: Target, precision: str) -> Target:
    return encode(target, precision).decode()


# --- how a target is stored ---------------------------------------------------------------------------------


def test_float32_is_exact_in_every_dtype() -> None:
    target = {
        "maps": torch.randn(5, 3, 4) * torch.tensor([1e-44, 1e-20, 1, 1e20, 3e38]).view(5, 1, 1),
        "half": torch.randn(5, 3).bfloat16(),
        "double": torch.randn(5, 2).double(),
        "labels": torch.arange(5),
    }
    back = restored(target, "float32")
    assert {k: v.dtype for k, v in back.items()} == {k: v.dtype for k, v in target.items()}
    assert all(torch.equal(back[name], target[name]) for name in target)


@given(st.integers(0, 10_000), st.floats(-29, 37), st.booleans())
def test_float16_keeps_11_bits_of_rows_of_any_size(seed: int, power: float, spread: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 5, generator=generator)
    if spread:  # within a row over 8 orders of magnitude
        x *= 10 ** (-8 * torch.rand(4, 3, 5, generator=generator))
    x = (x.double() * 10**power).float()
    x[0] = 0
    back = restored({"x": x}, "float16")["x"]
    largest = x.double().abs().amax((1, 2), keepdim=True)
    bound = torch.maximum(x.double().abs() * 2.0**-11, largest * 2.0**-39)
    assert bool(((back.double() - x.double()).abs() <= bound).all())
    assert back.dtype == torch.float32


def test_float16_stores_two_bytes_and_a_power_of_two() -> None:
    parts = encode({"x": torch.randn(6, 10) * 1e-9, "half": torch.randn(6, 3).bfloat16()}, "float16").parts
    assert {name: part.dtype for name, part in parts.items()} == {
        "x": torch.float16,
        "x/scale": torch.bfloat16,
        "half": torch.bfloat16,
    }
    scale = parts["x/scale"].double()
    assert torch.equal(scale.log2(), scale.log2().round())
    assert float(parts["x"].abs().amax(1).min()) >= 2**14  # far from the subnormal


@given(st.integers(0, 10_000), st.floats(-30, 30))
def test_uint8_is_within_half_a_step(seed: int, power: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, 6, 7, generator=generator) * 10**power
    maps[1] = 10**power  # constant: exact
    logits = torch.randn(4, 10, generator=generator)
    target = {"maps": maps, "logits": logits}
    encoded = encode(target, "uint8")
    assert encoded.parts["maps"].dtype == torch.uint8
    assert encoded.parts["logits"].dtype == torch.float16  # logits are few, and their differences count
    back = encoded.decode()
    step = (maps.amax((1, 2)) - maps.amin((1, 2))).double() / 255
    error = (back["maps"].double() - maps.double()).abs().amax((1, 2))
    assert bool((error <= 0.5 * step * 1.001 + 1e-6 * maps.amax((1, 2)).double()).all())
    assert torch.equal(back["maps"][1], maps[1])
    assert torch.allclose(back["logits"], logits, rtol=2**-11, atol=0)


@pytest.mark.parametrize("precision", ["float16", "float32", "uint8"])
def test_what_is_not_finite_stays_so(precision: str) -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.ones(3, 2, 2)
        x[1, 0, 1] = bad
        back = restored({"x": x}, precision)["x"]
        assert not back[1].isfinite().all()
        assert torch.equal(back[[0, 2]], x[[0, 2]])


# --- how a target is named ----------------------------------------------------------------------------------


def names(method: Any, layers: Any = ("low", "high")) -> dict[str, str]:
    distiller = Distiller(tiny_net(1), tiny_net(2), method, list(layers), (1, 12, 12))
    distiller.close()
    return target_names(distiller)


def test_methods_with_the_same_target_share_it() -> None:
    both = names("at+kd")
    assert set(both) == {"at", "kd"}
    assert all(name.startswith(f"{term}-") for term, name in both.items())
    assert names("at")["at"] == both["at"]
    assert names({"kd": {"temperature": 9, "weight": 0.5}})["kd"] == both["kd"]
    assert names({"at": {"reduction": "norm", "schedule": "cosine"}})["at"] == both["at"]
    assert names({"at": {"exponent": 2}})["at"] == both["at"]
    assert names("ce") == names({"kd": {"weight": 0}}) == {}
    others = [
        names({"at": {"exponent": 4}}),
        names({"at": {"reduce": "max"}}),
        names("at", ["low"]),
        names("at", ["high", "low"]),
    ]
    assert len({both["at"], *(other["at"] for other in others)}) == 5
    assert names("kd", ["low"])["kd"] == both["kd"]  # logits, whatever the layers


def test_one_forward_pass_serves_all_methods() -> None:
    teacher = tiny_net(2)
    methods = ["ce", "kd", "at", {"at": {"exponent": 4}}]
    distillers = [Distiller(tiny_net(1), teacher, m, ["low", "high"], (1, 12, 12)) for m in methods]
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(3, 1, 12, 12)
    shared = SharedTeacher(distillers)
    found = shared.targets(images, torch.zeros(len(images), dtype=torch.int64), list(shared.losses))
    assert len(calls) == 1
    assert len(found) == 3
    for distiller in distillers[1:]:
        for term, target in distiller.target(images).items():
            ours = found[target_names(distiller)[term]]
            assert all(torch.equal(ours[name], target[name]) for name in target)
    # 3 logits and a scale; two times 144 + 36 positions, each map with a scale: half precision
    sizes = shared.bytes_per_image(images, "float16")
    assert sizes.keys() == shared.losses.keys()
    assert sorted(sizes.values()) == [2 * (3 + 1), *[2 * (144 + 1 + 36 + 1)] * 2]


def test_hooks_of_its_own_are_taken_off() -> None:
    teacher = tiny_net(2)
    methods = ["at", "cam"]  # no observer of theirs sees maps and class maps
    distillers = [Distiller(tiny_net(1), teacher, m, ["low", "high"], (1, 12, 12)) for m in methods]
    before = sum(len(module._forward_hooks) for module in teacher.modules())
    with SharedTeacher(distillers) as shared:
        found = shared.targets(torch.randn(3, 1, 12, 12), torch.zeros(3, dtype=torch.int64), shared.losses)
        assert len(found) == 2
        assert sum(len(module._forward_hooks) for module in teacher.modules()) > before
    assert sum(len(module._forward_hooks) for module in teacher.modules()) == before


def test_a_target_needs_a_row_an_image(monkeypatch: Any) -> None:
    monkeypatch.setattr(AttentionTransfer, "target", lambda self, seen: {"mean": torch.zeros(1)})
    distiller = Distiller(tiny_net(1), tiny_net(2), "at", ["low", "high"], (1, 12, 12))
    with pytest.raises(InputError, match="target 'mean' of 'at' is \\[1\\] for 2 images"):
        SharedTeacher([distiller]).bytes_per_image(torch.zeros(2, 1, 12, 12), "float16")


def test_the_hash_of_the_weights_sees_every_bit_and_no_layout() -> None:
    network = tiny_net(2)
    before = weights_hash(network)
    assert weights_hash(tiny_net(2).to(memory_format=torch.channels_last)) == before
    assert weights_hash(tiny_net(3)) != before
    network.low[1].running_mean[0] += 1e-7  # type: ignore[index, operator]
    assert weights_hash(network) != before


def test_the_hash_sees_what_no_checkpoint_holds() -> None:
    class Shifted(nn.Module):
        def __init__(self, mean: float, after: nn.Module, note: object = None) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.after, self.note = after, note

        def extra_repr(self) -> str:
            return f"note={self.note!r}"

    before = weights_hash(Shifted(0.0, nn.ReLU()))
    assert weights_hash(Shifted(0.0, nn.ReLU())) == before
    assert weights_hash(Shifted(3.0, nn.ReLU())) != before
    assert weights_hash(Shifted(0.0, nn.GELU())) != before
    prints_its_address = [weights_hash(Shifted(0.0, nn.ReLU(), note)) for note in (object(), object())]
    assert prints_its_address[0] == prints_its_address[1] != before


# --- the folder ---------------------------------------------------------------------------------------------


class Source:
    """Answers targets that are a function of (view, sample), and counts."""

    def __init__(self, view: int = 0) -> None:
        self.view, self.asked = view, list[list[str]]()

    def __call__(self, wanted: Sequence[str]) -> Iterator[tuple[Tensor, Mapping[str, Target]]]:
        self.asked.append(list(wanted))
        for indices in torch.randperm(10).split(4):
            yield indices, {name: {"x": whole(self.view, name)[indices]} for name in wanted}


def whole(view: int, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * view + len(name))
    return torch.randn(10, 3, generator=generator)


def opened(folder: Path, said: list[str] | None = None, **key: Any) -> Memory:
    return Memory(folder, {**KEY, **key}, 10, say=(said if said is not None else []).append)


def check(memory: Memory, view: int, *wanted: str, asked: list[list[str]]) -> None:
    source = Source(view)
    found = memory.view(view, wanted, source)
    rows = torch.tensor([7, 2, 2])
    for name in wanted:
        assert torch.equal(found[name].rows(rows, CPU).decode()["x"], whole(view, name)[rows])
    assert source.asked == asked


def test_asked_once_then_mapped(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    memory = opened(folder)
    assert memory.missing([["a", "bb"]] * 3) == [0, 1, 2]
    assert not folder.exists()  # nothing is written before the first view
    check(memory, 1, "a", asked=[["a"]])
    check(memory, 1, "a", "bb", asked=[["bb"]])
    again = opened(folder)
    check(again, 1, "a", "bb", asked=[])
    assert again.missing([["a", "bb"]] * 3) == [0, 2]
    assert again.missing([["a"], ["bb"], []]) == [0]
    found = again.view(1, ["a"], Source(1))
    assert str(again.path("a", 1)) in Path("/proc/self/maps").read_text()
    del found
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
        "memory.json",
        *["view-0001.safetensors"] * 2,
    ]


def test_a_memory_that_was_changed_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    ours = opened(tmp_path / "m")  # nothing is there yet
    check(opened(tmp_path / "m", teacher="1" * 64), 0, "a", asked=[["a"]])
    said: list[str] = []
    ours.say = said.append
    with pytest.raises(InputError, match="remembers something else"):
        ours.view(0, ["a"], Source(0))
    assert said == []
    check(opened(tmp_path / "m", teacher="1" * 64), 0, "a", asked=[])


def test_another_key_is_named(tmp_path: Path) -> None:
    check(opened(tmp_path / "m"), 0, "a", asked=[["a"]])
    with pytest.raises(
        InputError,
        match=r"remembers something else \(teacher was '000000000000...', is '111111111111...'; "
        r"view_seed was 0, is 3\); choose another folder with --memory",
    ):
        opened(tmp_path / "m", teacher="1" * 64, view_seed=3)
    file = tmp_path / "m" / "memory.json"
    file.write_text(file.read_text().replace('"format": 3', '"format": 9'))
    with pytest.raises(InputError, match=r"\(format was 9, is 3\)"):
        opened(tmp_path / "m")


def test_two_keys_for_one_new_folder(tmp_path: Path) -> None:
    """Both found it empty; the second to store is refused, and what is there stays whole."""
    one, other = opened(tmp_path / "m"), opened(tmp_path / "m", view_seed=3)
    check(one, 0, "a", asked=[["a"]])
    with pytest.raises(InputError, match="view_seed was 0, is 3"):
        other.view(1, ["a"], Source(1))
    check(opened(tmp_path / "m"), 0, "a", asked=[])


@pytest.mark.parametrize("name", ["thesis.tex", "memory.json"])
def test_a_foreign_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"kind": "diary"}')
    with pytest.raises(InputError, match="holds files that are no memory of eyeline; choose another folder"):
        opened(tmp_path)
    with pytest.raises(InputError, match="is a file; expected a folder"):
        opened(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    match how:
        case "truncated":
            del content[-5:]
        case "half":
            del content[len(content) // 2 :]
        case "empty":
            content.clear()
        case "first bit":
            content[8 + header] ^= 1
        case "last bit":
            content[-1] ^= 1
        case "dtype":
            content = content.replace(b"float32", b"float64")
        case "other view":
            content[:] = path.with_name("view-0001.safetensors").read_bytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["truncated", "half", "empty", "first bit", "last bit", "dtype", "other view"]
)
def test_a_damaged_view_is_said_and_made_anew(tmp_path: Path, how: str) -> None:
    memory = opened(tmp_path / "m")
    for view in (0, 1):
        check(memory, view, "a", "bb", asked=[["a", "bb"]])
    damage(memory.path("a", 0), how)
    said: list[str] = []
    check(opened(tmp_path / "m", said), 0, "a", "bb", asked=[["a"]])
    assert len(said) == 1
    assert said[0].startswith(f"{memory.path('a', 0)} is damaged (")
    check(opened(tmp_path / "m", said), 0, "a", "bb", asked=[])
    check(opened(tmp_path / "m", said), 1, "a", "bb", asked=[])
    assert len(said) == 1


def test_a_view_of_another_memory_is_not_used(tmp_path: Path) -> None:
    check(opened(tmp_path / "m"), 0, "a", asked=[["a"]])
    other = opened(tmp_path / "n", view_seed=3)
    check(other, 1, "a", asked=[["a"]])
    shutil.copy(opened(tmp_path / "m").path("a", 0), other.path("a", 0))
    check(other, 0, "a", asked=[["a"]])


def test_a_full_disk(tmp_path: Path, monkeypatch: Any) -> None:
    said: list[str] = []
    memory = opened(tmp_path / "m", said)
    check(memory, 0, "a", asked=[["a"]])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    check(memory, 1, "a", "bb", asked=[["a", "bb"]])
    check(memory, 2, "a", asked=[["a"]])
    check(memory, 0, "a", asked=[])
    assert len(said) == 1
    assert "the disk is full; what" in said[0]
    assert memory.stuck
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "m").rglob("*") if p.is_file() and p.name != "memory.json"] == [
        "view-0000.safetensors"
    ]
    check(opened(tmp_path / "m"), 1, "a", asked=[["a"]])


def test_killed_while_a_view_is_written(tmp_path: Path) -> None:
    def write_half(folder: Path) -> None:
        def kill(descriptor: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        memory = opened(folder)
        memory.view(0, ["a"], Source(0))
        os.fsync = kill
        memory.view(1, ["a"], Source(1))

    process = fork.Process(target=write_half, args=(tmp_path / "m",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "m").rglob("*.part"))  # it was in the middle
    memory = opened(tmp_path / "m")
    assert memory.missing([["a"]] * 2) == [1]
    check(memory, 0, "a", asked=[])
    check(memory, 1, "a", asked=[["a"]])
    assert not list((tmp_path / "m").rglob("*.part"))


def test_two_processes_that_fill_at_once(tmp_path: Path) -> None:
    """They meet before every write; each keeps what is there by then, and what is there is whole."""
    barrier = fork.Barrier(2)

    def together(folder: Path) -> None:
        write = module.write_atomically

        def meet(path: Path, content: bytes) -> None:
            barrier.wait(30)
            write(path, content)

        module.write_atomically = meet  # type: ignore[attr-defined]
        memory = opened(folder)
        for view in range(4):
            check(memory, view, "a", asked=[["a"]])
        assert not memory.stuck

    processes = [fork.Process(target=together, args=(tmp_path / "m",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for view in range(4):
        check(opened(tmp_path / "m"), view, "a", asked=[])
    assert not list((tmp_path / "m").rglob("*.part"))


def test_only_what_is_ours_is_removed(tmp_path: Path) -> None:
    check(opened(tmp_path / "m"), 0, "a", "bb", asked=[["a", "bb"]])
    (tmp_path / "m" / "a" / ".view-0001.safetensors.77.part").write_text("half")
    check(opened(tmp_path / "n"), 0, "a", asked=[["a"]])
    (tmp_path / "n" / "a" / "notes.txt").write_text("mine")
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "view-0000.safetensors").write_text("mine")
    (tmp_path / "other" / "memory.json").write_text(json.dumps({"kind": "diary"}))
    remove_memories(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "n/a/notes.txt",
        "other/a/view-0000.safetensors",
        "other/memory.json",
    ]
    assert not (tmp_path / "m").exists()
