"""What a finished run leaves: weights, card, figures, answers."""

from __future__ import annotations

import dataclasses
from typing import Any

from safetensors.torch import save as to_safetensors

from eyeline import models
from eyeline.console import say
from eyeline.device import Device
from eyeline.errors import InputError
from eyeline.experiment.experiment import Experiment, Student, Teacher, described
from eyeline.files import read_json, write_atomically, write_json
from eyeline.losses import AttentionTransfer
from eyeline.objective.method import method_name
from eyeline.runs.answers import write_answers
from eyeline.runs.card import architecture, held_out_hashes
from eyeline.runs.folder import ANSWERS, CHECKPOINT, MODEL, RESULT, RunFolder
from eyeline.runs.provenance import plain
from eyeline.training.evaluation import Evaluation, attention_loss, evaluate
from eyeline.training.streams import evaluation_stream


def finish(folder: RunFolder, experiment: Experiment, device: Device) -> None:
    """Write the weights and the figures of a run that is trained."""
    student, teacher, data = experiment.student, experiment.teacher, experiment.data
    kind = "model" if teacher is None else "student"
    state = {
        # a copy, for safetensors refuses tensors that share their memory, as those of a module with two names
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in student.network.state_dict().items()
    }
    write_atomically(folder.path / f"{kind}.safetensors", to_safetensors(state))
    write_json(folder.path / MODEL, _model_card(experiment, f"{kind}.safetensors"))

    last = folder.read_metrics()[-1]
    result: dict[str, Any] = {
        "kind": "run",
        "verb": "train" if teacher is None else "distill",
        kind: named(student),
        "method": method_name(experiment.method),
        "layers": [list(pair) for pair in experiment.distiller.pairs],
        "seed": experiment.settings.seed,
        "data": described(data),
        "train_loss": last.get("ce"),
        "train_accuracy": last["train_accuracy"],
        "validation_accuracy": last["validation_accuracy"],
        "validation_loss": last["validation_loss"],
        "attention_loss": _attention_loss(experiment, device),
        **_test(folder, experiment, device),
    }
    if teacher:
        result["teacher"] = named(teacher)
    write_json(folder.path / RESULT, result)
    (folder.path / CHECKPOINT).unlink(missing_ok=True)  # the run is done: its weights lie beside it


def named(network: Student | Teacher) -> dict[str, Any]:
    """What a result tells of a network."""
    return {"model": network.name, "parameters": models.parameter_count(network.network)}


def _test(folder: RunFolder, experiment: Experiment, device: Device) -> dict[str, float | None]:
    """The figures on the test images; each answer is kept."""
    data = experiment.data
    if data.test is None:
        return dict.fromkeys(("test_accuracy", "test_loss", "teacher_agreement"))
    batches = evaluation_stream(data.test, data, experiment.settings, device)
    measured = evaluate(experiment.student.network, batches, device.autocast)
    write_answers(folder.path / ANSWERS, measured.answers, data.test.labels)
    theirs = teacher_tested(experiment, device)
    same = None if theirs is None else float((measured.answers == theirs.answers).double().mean())
    return {"test_accuracy": measured.accuracy, "test_loss": measured.loss, "teacher_agreement": same}


def test_again(folder: RunFolder, experiment: Experiment) -> dict[str, Any]:
    """The result of a finished run that kept no answers, as an earlier version left it: now it does."""
    network, device = experiment.student.network, experiment.device
    card = read_json(folder.path / MODEL, "a finished run")
    models.load_weights(network, folder.path / card["weights"])
    device.place(network)
    say(f"{folder.path} kept no answers to the test images: its weights are asked again")
    same = _test(folder, experiment, device)["teacher_agreement"]
    result = {**(folder.result or {}), "teacher_agreement": same}
    write_json(folder.path / RESULT, result)
    return result


def teacher_tested(experiment: Experiment, device: Device) -> Evaluation | None:
    """The teacher on the test images, asked once; none without them, or of a teacher of other classes."""
    teacher, data = experiment.teacher, experiment.data
    if teacher is None or data.test is None:
        return None
    if "test" not in teacher.tested:
        teacher.tested["test"] = None
        if teacher.knows_classes_of(data):
            network = device.place(teacher.network)
            batches = evaluation_stream(data.test, data, experiment.settings, device)
            teacher.tested["test"] = evaluate(network, batches, device.autocast)
    return teacher.tested["test"]


def _attention_loss(experiment: Experiment, device: Device) -> float | None:
    """On the validation images; none without a teacher, or for networks that have no maps to compare."""
    if experiment.teacher is None:
        return None
    device.place(experiment.teacher.network)
    data = experiment.data
    batches = evaluation_stream(data.validation, data, experiment.settings, device)
    try:
        with experiment.distiller_of(AttentionTransfer.name) as distiller:
            return attention_loss(distiller, batches, device.autocast)
    except InputError:
        return None


def _model_card(experiment: Experiment, weights: str) -> dict[str, Any]:
    student, data = experiment.student, experiment.data
    return {
        "format": 1,
        "model": architecture(student.given),
        "num_classes": len(data.classes),
        "in_chans": data.channels,
        "parameters": models.parameter_count(student.network),
        "weights": weights,
        "data": {"name": data.name, **held_out_hashes(data)},
        "classes": list(data.classes),
        "preprocess": plain(dataclasses.asdict(experiment.view)),
    }
