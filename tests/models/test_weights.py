"""Networks by name, and checkpoints: what is loaded, what is refused; nothing in a file is ever run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from eyeline import InputError, create_model
from eyeline.models import EMBEDDED
from eyeline.models.weights import load_weights, read_tensors
from networks import Plain


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    return create_model("wrn_10_1", num_classes=4)


def fresh(**options: Any) -> nn.Module:
    torch.manual_seed(2)
    return create_model("wrn_10_1", **{"num_classes": 4, **options})


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


WRITERS: dict[str, Callable[[Mapping[str, Tensor], Path], None]] = {
    "w.safetensors": lambda state, path: save_file(dict(state), path),
    "w.pt": lambda state, path: torch.save(dict(state), path),
    "old.pth": lambda state, path: torch.save(dict(state), path, _use_new_zipfile_serialization=False),
    "wrapped.ckpt": lambda state, path: torch.save({"epoch": 3, "state_dict": dict(state)}, path),
    "twice.ckpt": lambda state, path: torch.save({"model": {"state_dict": dict(state)}}, path),
    "parallel.pt": lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
    "compiled.pt": lambda state, path: torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, path),
    "both.safetensors": lambda state, path: save_file(
        {f"_orig_mod.module.{k}": v for k, v in state.items()}, path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(name: str, trained: nn.Module, tmp_path: Path) -> None:
    WRITERS[name](trained.state_dict(), tmp_path / name)
    model = fresh()
    load_weights(model, tmp_path / name)
    assert_same(model, trained)
    assert_same(create_model("wrn_10_1", num_classes=4, weights=str(tmp_path / name)), trained)


def test_network_whose_own_names_begin_with_module(tmp_path: Path) -> None:
    inner = nn.Sequential()
    inner.add_module("module", Plain())
    save_file(inner.state_dict(), tmp_path / "w.safetensors")
    other = nn.Sequential()
    other.add_module("module", Plain())
    load_weights(other, tmp_path / "w.safetensors")
    assert_same(other, inner)


def test_counters_of_batches_may_be_missing(trained: nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(fresh(), tmp_path / "w.safetensors")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_code_in_a_file_is_never_run(
    new_format: bool, suffix: str, trained: nn.Module, tmp_path: Path
) -> None:
    proof, path = tmp_path / "it-ran", tmp_path / f"w{suffix}"
    content = {**trained.state_dict(), "extra": Malicious(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError) as error:
        load_weights(fresh(), path)
    assert not proof.exists()
    if suffix != ".safetensors":
        assert "refused" in str(error.value)
        assert "could run code; save the network's state_dict() with safetensors" in str(error.value)
    path.rename(tmp_path / "w.pt")
    torch.load(tmp_path / "w.pt", weights_only=False)  # it would have
    assert proof.exists()


def test_whole_pickled_network_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "net.pt")
    with pytest.raises(InputError, match="refused"):
        load_weights(fresh(), tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pth"])
@pytest.mark.parametrize("kept", [0, 4, 0.3, 0.7, 0.999])
def test_truncated(name: str, kept: float, trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](trained.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    model = fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r"truncated|damaged") as error:
        load_weights(model, path)
    assert str(path) in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_not_a_checkpoint(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"truncated|damaged"):
        read_tensors(path)


def test_missing_file_folder_and_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors does not exist; expected a \.safetensors"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="is a folder; expected a file"):
        read_tensors(tmp_path)
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"step": 3}, tmp_path / "step.pt")
    for name in ("list.pt", "step.pt"):
        with pytest.raises(InputError, match=r"holds no named tensors; expected the state_dict\(\)"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_classes": 7}, "the checkpoint has 4 classes, the network 7"),
        ({"in_chans": 1}, "the checkpoint takes images of 3 channels, the network of 1"),
        ({"in_chans": 1, "num_classes": 7}, "the checkpoint"),
    ],
    ids=str,
)
def test_other_classes_or_channels(
    options: dict[str, int], told: str, trained: nn.Module, tmp_path: Path
) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = fresh(**options)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=told):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_checkpoint_of_another_network(trained: nn.Module, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"another network than Plain: \d+ tensors \(conv.weight.*\) missing, \d+"
    ):
        load_weights(Plain(classes=4), tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"another network than WideResNet: none missing|missing, none unknown"
    ):
        load_weights(create_model("wrn_16_1", num_classes=4), tmp_path / "w.safetensors")
    save_file(create_model("wrn_10_2", num_classes=4).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"w.safetensors: .* is \[32.*, the network has \[48"):
        load_weights(create_model("wrn_10_3", num_classes=4), tmp_path / "w.safetensors")


# --- names ----------------------------------------------------------------------------------------------


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="unknown model 'wrn_16-1'; did you mean 'wrn_16_1'") as error:
        create_model("wrn_16-1")
    assert len(str(error.value)) < 200
    with pytest.raises(InputError, match="unknown torchvision model 'resnet_18'; did you mean 'resnet18'"):
        create_model("torchvision/resnet_18")
    with pytest.raises(InputError, match="unknown torchvision model 'fcn_resnet50'"):
        create_model("torchvision/fcn_resnet50")  # not a classifier
    with pytest.raises(InputError, match="neither a run folder that exists nor a name"):
        create_model("runs/none")


def test_torchvision_networks() -> None:
    model = create_model("torchvision/squeezenet1_1", num_classes=3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(InputError, match="takes images of 3 channels, not 1; timm's"):
        create_model("torchvision/squeezenet1_1", num_classes=3, in_chans=1)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_published_weights_with_other_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is of the published weights but the classifier, which is fresh and of the classes asked for."""
    torch.manual_seed(3)
    published = torchvision.models.get_model(name, weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    assert all(
        torch.equal(v, published[k])
        for k, v in create_model(f"torchvision/{name}", pretrained=True).state_dict().items()
    )
    model = create_model(f"torchvision/{name}", num_classes=3, pretrained=True)
    different = [k for k, v in model.state_dict().items() if v.shape != published[k].shape]
    assert len(different) == 2  # weight and bias
    assert all(torch.equal(v, published[k]) for k, v in model.state_dict().items() if k not in different)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_published_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(InputError, match=r"weights of torchvision/squeezenet1_1 could not be had \(no route"):
        create_model("torchvision/squeezenet1_1", pretrained=True)
    for name in ("wrn_16_1", "wrn_10_3"):  # known to timm, and not
        with pytest.raises(InputError, match=rf"weights .*{name}.*give a checkpoint file or a run folder"):
            create_model(name, pretrained=True)


def test_a_hub_that_cannot_be_reached_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("tried again"))
    environment = dict(os.environ)
    with pytest.raises(InputError, match=r"weights of resnet18 .*\(http://127.0.0.1:9 cannot be reached"):
        create_model("resnet18", pretrained=True)
    assert not caplog.records
    assert not constants.HF_HUB_OFFLINE
    assert dict(os.environ) == environment


@pytest.mark.parametrize("name", EMBEDDED)
def test_names_of_embedded_weights(name: str) -> None:
    model = create_model(name)
    assert model(torch.randn(1, EMBEDDED[name]["in_chans"], 28, 28)).shape == (
        1,
        EMBEDDED[name]["num_classes"],
    )
    with pytest.raises(InputError, match="was trained with in_chans=1; in_chans=3 was asked for"):
        create_model(name, in_chans=3)
