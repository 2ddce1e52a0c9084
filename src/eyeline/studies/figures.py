"""What came out of the runs of a study: its figures, and a picture of where the networks look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image

from eyeline.attention import attention_map
from eyeline.data.splits import MemorySplit
from eyeline.errors import InputError
from eyeline.experiment.experiment import BASELINE, Experiment, described
from eyeline.experiment.resolve import named_student
from eyeline.observe import Observer
from eyeline.pages.pictures import attention_grid, save_figure
from eyeline.pages.tables import display_name
from eyeline.runs.answers import read_answers, write_answers
from eyeline.runs.card import load
from eyeline.runs.folder import ANSWERS, TEACHER_ANSWERS
from eyeline.runs.provenance import environment
from eyeline.studies.plan import Planned
from eyeline.studies.statistics import correct, paired_difference, summary
from eyeline.training.evaluation import evaluate
from eyeline.training.result import named, teacher_tested
from eyeline.training.streams import evaluation_stream

_FIGURES = (
    *("train_loss", "train_accuracy", "attention_loss", "validation_accuracy", "test_accuracy"),
    "teacher_agreement",
)


def study_figures(
    path: Path, study: Experiment, plan: Sequence[Planned], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of ``study.json``, but for the recipe; also keeps the teacher's answers."""
    runs: dict[str, list[dict[str, Any]]] = {run.name: [] for run in plan}
    for run, result in zip(plan, results, strict=True):
        about = {"seed": run.settings.seed, "run": str(run.path.relative_to(path))}
        runs[run.name].append(about | {name: result.get(name) for name in _FIGURES})
    teacher = _teacher_figures(path, study)
    differences = {} if study.data.test is None else _differences(path, runs)
    return {
        "environment": environment(),
        "data": described(study.data),
        "teacher": teacher,
        "student": named(study.student),
        "baseline": BASELINE,
        "methods": [
            {"method": name, "runs": each, "summary": _summaries(each)}
            | ({"difference": differences[name]} if name in differences else {})
            for name, each in runs.items()
        ],
    }


def _teacher_figures(path: Path, study: Experiment) -> dict[str, Any]:
    teacher, data, device = study.teacher, study.data, study.device
    assert teacher is not None
    figures = named(teacher)
    if not teacher.knows_classes_of(data):
        return figures
    network = device.place(teacher.network)
    seen = evaluate(network, evaluation_stream(data.train, data, study.settings, device), device.autocast)
    tested = teacher_tested(study, device)
    for name, measured in (("train", seen), ("test", tested)):
        if measured is not None:
            figures |= {f"{name}_accuracy": measured.accuracy, f"{name}_loss": measured.loss}
    if tested is not None and data.test is not None:
        write_answers(path / TEACHER_ANSWERS, tested.answers, data.test.labels)
    return figures


def _differences(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each method to the student alone, from the answers that the runs kept."""
    right = {
        name: np.stack([read_answers(path / run["run"] / ANSWERS)[1] for run in each])
        for name, each in runs.items()
    }
    found = {name: paired_difference(right[name], right[BASELINE]) for name in right if name != BASELINE}
    correct(found.values())
    return found


def _summaries(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: summary([run[name] for run in runs])
        for name in _FIGURES
        if all(run[name] is not None for run in runs)
    }


def draw_attention(path: Path, study: Experiment, methods: Sequence[Mapping[str, Any]]) -> None:
    """``attention.png``: teacher and the first seed's students, side by side on a few test images.

    None for networks that have no layers to compare, and for images that are no pictures.
    """
    data, teacher = study.data, study.teacher
    if data.channels not in (1, 3) or teacher is None:
        return
    teacher.network.cpu()
    try:
        with study.distiller_of("at") as distiller:
            ours, theirs = zip(*distiller.pairs, strict=True)
    except InputError:
        return
    split = data.test or data.validation
    chosen = [int((split.labels == label).nonzero()[0, 0]) for label in split.labels.unique()[:4]]
    if isinstance(split, MemorySplit):
        images = [to_pil_image(split.images[i]) for i in chosen]
    else:
        images = [split.load(i) for i in chosen]
    pixels = torch.stack([study.view.pixels(image) for image in images])

    networks = {"teacher": (teacher.network, theirs, teacher.probe)}
    for entry in methods:
        fresh = named_student(study.student.given, data, study.settings)
        trained = load(path / entry["runs"][0]["run"], fresh.network)
        networks[display_name(entry["method"])] = (trained.cpu(), ours, study.student.probe)
    maps = {}
    for name, (network, names, probe) in networks.items():
        with Observer(network.eval(), names, probe=probe) as observer, torch.no_grad():
            maps[name] = [attention_map(feature) for feature in observer(study.view(pixels)).features]
    rows = [data.classes[int(split.labels[i])] for i in chosen]
    save_figure(attention_grid(pixels, maps, rows), path / "attention.png")
