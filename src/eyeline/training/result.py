"""What a finished run leaves: weights, card, figures, answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import nn

from eyeline import models
from eyeline.console import say
from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.errors import InputError
from eyeline.experiment.resolve import described, evaluation_view, image_shape
from eyeline.files import read_json, write_atomically, write_json
from eyeline.objective.method import method_name
from eyeline.observe import Probe
from eyeline.runs.answers import write_answers
from eyeline.runs.card import architecture, called, held_out_hashes
from eyeline.runs.folder import (
    ANSWERS,
    CHECKPOINT,
    MODEL,
    RESULT,
    RunFolder,
)
from eyeline.runs.provenance import plain
from eyeline.settings import Settings
from eyeline.teacher import Teacher
from eyeline.training.evaluation import Evaluation, attention_loss, evaluate
from eyeline.training.trainer import evaluation_stream


def finish(
    verb: str,
    folder: RunFolder,
    given: Any,
    student: nn.Module,
    teacher: Teacher | None,
    data: ImageData,
    method: Any,
    layers: str | Sequence[str],
    settings: Settings,
    device: Device,
    pairs: Sequence[tuple[str, str]],
) -> None:
    """Write the weights and the figures of a run that is trained."""
    weights = "model.safetensors" if verb == "train" else "student.safetensors"
    state = {
        # a copy, for safetensors refuses tensors that share their memory, as those of a module with two names
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in student.state_dict().items()
    }
    write_atomically(folder.path / weights, to_safetensors(state))
    write_json(folder.path / MODEL, _model_card(given, student, data, settings, weights))

    last = folder.read_metrics()[-1]
    result: dict[str, Any] = {
        "kind": "run",
        "verb": verb,
        "student" if verb == "distill" else "model": {
            "model": called(given),
            "parameters": models.parameter_count(student),
        },
        "method": method_name(method),
        "layers": [list(pair) for pair in pairs],
        "seed": settings.seed,
        "data": described(data),
        "train_loss": last.get("ce"),
        "train_accuracy": last["train_accuracy"],
        "validation_accuracy": last["validation_accuracy"],
        "validation_loss": last["validation_loss"],
        "attention_loss": _attention_loss(student, teacher, data, settings, device, layers),
        **_test(folder, student, teacher, data, settings, device),
    }
    if teacher:
        result["teacher"] = {"model": teacher.name, "parameters": models.parameter_count(teacher.network)}
    write_json(folder.path / RESULT, result)
    (folder.path / CHECKPOINT).unlink(missing_ok=True)  # the run is done: its weights lie beside it


def _test(
    folder: RunFolder,
    student: nn.Module,
    teacher: Teacher | None,
    data: ImageData,
    settings: Settings,
    device: Device,
) -> dict[str, float | None]:
    """The figures on the test images; each answer is kept."""
    if data.test is None:
        return dict.fromkeys(("test_accuracy", "test_loss", "teacher_agreement"))
    measured = evaluate(student, evaluation_stream(data.test, data, settings, device), device.autocast)
    write_answers(folder.path / ANSWERS, measured.answers, data.test.labels)
    theirs = None if teacher is None else teacher_tested(teacher, data, settings, device)
    same = None if theirs is None else float((measured.answers == theirs.answers).double().mean())
    return {"test_accuracy": measured.accuracy, "test_loss": measured.loss, "teacher_agreement": same}


def test_again(
    folder: RunFolder, student: nn.Module, teacher: Teacher | None, data: ImageData, settings: Settings
) -> dict[str, Any]:
    """The result of a finished run that kept no answers, as an earlier version left it: now it does."""
    card = read_json(folder.path / MODEL, "a finished run")
    models.load_weights(student, folder.path / card["weights"])
    device = Device.of(settings)
    device.place(student)
    say(f"{folder.path} kept no answers to the test images: its weights are asked again")
    same = _test(folder, student, teacher, data, settings, device)["teacher_agreement"]
    result = {**(folder.result or {}), "teacher_agreement": same}
    write_json(folder.path / RESULT, result)
    return result


def teacher_tested(
    teacher: Teacher, data: ImageData, settings: Settings, device: Device
) -> Evaluation | None:
    """The teacher on the test images, asked once; none for a teacher of other classes."""
    assert data.test is not None
    if "test" not in teacher.tested:
        device.place(teacher.network)
        ours = Probe(teacher.network, image_shape(data, settings)).answer == (len(data.classes),)
        teacher.tested["test"] = (
            evaluate(teacher.network, evaluation_stream(data.test, data, settings, device), device.autocast)
            if ours
            else None
        )
    return teacher.tested["test"]


def _attention_loss(
    student: nn.Module,
    teacher: Teacher | None,
    data: ImageData,
    settings: Settings,
    device: Device,
    layers: str | Sequence[str],
) -> float | None:
    """On the validation images; none without a teacher, or for networks that have no maps to compare."""
    if teacher is None:
        return None
    device.place(teacher.network)
    batches = evaluation_stream(data.validation, data, settings, device)
    try:
        return attention_loss(
            student, teacher.network, batches, device.autocast, layers, image_shape(data, settings)
        )
    except InputError:
        return None


def _model_card(
    given: Any, network: nn.Module, data: ImageData, settings: Settings, weights: str
) -> dict[str, Any]:
    return {
        "format": 1,
        "model": architecture(given),
        "num_classes": len(data.classes),
        "in_chans": data.channels,
        "parameters": models.parameter_count(network),
        "weights": weights,
        "data": {"name": data.name, **held_out_hashes(data)},
        "classes": list(data.classes),
        "preprocess": plain(dataclasses.asdict(evaluation_view(data, settings))),
    }
