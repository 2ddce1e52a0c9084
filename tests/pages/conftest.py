"""A study as the engine leaves it, made up but of realistic size: methods, seeds, curves, recipe."""

from __future__ import annotations

import csv
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

EPOCHS = 60
# method: (test accuracy, what is left of the loss at the end, of the attention loss)
METHODS = {
    "ce": (0.742, 0.020, None),
    "kd": (0.764, 0.35, None),
    "at": (0.759, 0.018, 2e-4),
    "sp": (0.744, 0.03, None),
}
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def make_study(
    folder: Path,
    methods: Mapping[str, tuple[float, float, float | None]] = METHODS,
    seeds: int = 6,
    classes: list[str] = CLASSES,
) -> Path:
    """Write ``study.json``, ``recipe.yaml`` and the runs; the figures are the same in every call."""
    chance = random.Random(7)
    of_seed = [chance.gauss(0, 0.006) for _ in range(seeds)]
    entries: list[dict[str, Any]] = []
    for number, (method, (accuracy, loss, attention)) in enumerate(methods.items()):
        runs = []
        for seed in range(seeds):
            run = f"method-{number}/seed-{seed}"
            reached = accuracy + of_seed[seed] + chance.gauss(0, 0.003)
            rows = [_row(epoch, reached, loss, attention, chance) for epoch in range(1, EPOCHS + 1)]
            _write_metrics(folder / run, rows)
            runs.append(
                {
                    "seed": seed,
                    "run": run,
                    "train_loss": rows[-1]["ce"],
                    "train_accuracy": rows[-1]["train_accuracy"],
                    "attention_loss": (attention or 1.4e-3) * chance.uniform(0.95, 1.05),
                    "validation_accuracy": rows[-1]["validation_accuracy"],
                    "test_accuracy": reached,
                    "teacher_agreement": reached + 0.02,
                }
            )
        entry: dict[str, Any] = {"method": method, "runs": runs, "summary": {}}
        for key in list(runs[0])[2:]:
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if seeds > 1 else None
            entry["summary"][key] = {"mean": statistics.fmean(values), "std": spread}
        if method != "ce":
            entry["difference"] = _difference(runs, entries[0]["runs"])
        entries.append(entry)
    recipe = {
        "verb": "study",
        "student": "wrn_16_1",
        "teacher": "wrn_16_2.fashion_mnist",
        "data": "fashion_mnist_sample",
        "methods": {"ce": {"ce": {"weight": 1.0, "schedule": "constant"}}},
        "seeds": list(range(seeds)),
        "layers": "auto",
        "teacher_weights": None,
        "train_size": 500,
        "epochs": EPOCHS,
        "batch_size": 128,
        "milestones": [0.3, 0.6, 0.8],
        "seed": 0,
    }
    study = {
        "kind": "study",
        "verb": "study",
        "recipe": recipe,
        "environment": {
            "command": ["eyeline", "study", "--config", "recipes/demo.yaml"],
            "python": "3.12.3",
            "versions": {"eyeline": "0.1.0", "torch": "2.9.0"},
            "gpus": [],
        },
        "data": {
            "name": "fashion_mnist_sample",
            "classes": classes,
            "train": 500,
            "validation": 1000,
            "test": 5000,
        },
        "teacher": {
            "model": "wrn_16_2.fashion_mnist",
            "parameters": 691_386,
            "test_accuracy": 0.9342,
            "train_accuracy": 0.982,
            "train_loss": 0.0561,
        },
        "student": {"model": "wrn_16_1", "parameters": 174_778},
        "baseline": "ce",
        "methods": entries,
    }
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    body = {k: v for k, v in recipe.items() if k != "verb"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")
    return folder


def make_run(folder: Path, **changes: Any) -> Path:
    """Write the folder of one finished run."""
    chance = random.Random(3)
    rows = [_row(epoch, 0.76, 0.02, 2e-4, chance) for epoch in range(1, EPOCHS + 1)]
    _write_metrics(folder, rows)
    result = {
        "kind": "run",
        "verb": "distill",
        "student": {"model": "wrn_16_1", "parameters": 174_778},
        "teacher": {"model": "wrn_16_2.fashion_mnist", "parameters": 691_386},
        "method": "at",
        "seed": 0,
        "data": {"name": "fashion_mnist_sample", "classes": CLASSES, "train": 500, "test": 5000},
        "train_loss": 0.0183,
        "train_accuracy": 0.998,
        "validation_accuracy": 0.755,
        "attention_loss": 2.1e-4,
        "test_accuracy": 0.7622,
        "teacher_agreement": 0.7841,
    } | changes
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        "# eyeline distill\nstudent: wrn_16_1\nmethod: {at: {weight: 1000.0}}\nepochs: 60\n"
    )
    (folder / "environment.json").write_text(json.dumps({"python": "3.12.3", "gpus": []}), encoding="utf-8")
    return folder


def _row(
    epoch: int, accuracy: float, loss: float, attention: float | None, chance: random.Random
) -> dict[str, Any]:
    done = math.exp(-epoch / 12)
    row = {
        "epoch": epoch,
        "step": 4 * epoch,
        "learning_rate": 0.05 * (1 + math.cos(math.pi * epoch / EPOCHS)),
        "loss": loss + 2.2 * done,
        "ce": (loss + 2.2 * done) * chance.uniform(0.93, 1.07),
        "train_accuracy": 1 - (0.8 * done + loss / 20) * chance.uniform(0.95, 1.05),
    }
    if attention:
        row["at"] = attention + 3e-3 * done * chance.uniform(0.9, 1.1)
    if epoch % 5 == 0:
        row["validation_accuracy"] = accuracy - 0.6 * done * chance.uniform(0.9, 1.1)
        row["validation_loss"] = 0.9 + done
    row["images_per_second"] = chance.uniform(900, 1000)
    return row


def _write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)


def _difference(runs: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """As of so many test images that they add no doubt."""
    pairs = [a["test_accuracy"] - b["test_accuracy"] for a, b in zip(runs, alone, strict=True)]
    mean, count = statistics.fmean(pairs), len(pairs)
    found = {"mean": mean, "low": None, "high": None, "seeds": count, "images": 5000}
    if count < 2:
        return found | dict.fromkeys(("p", "p_holm", "p_flips"))
    test = stats.ttest_1samp(pairs, 0)
    low, high = test.confidence_interval()
    flips = stats.permutation_test((pairs,), statistics.fmean, permutation_type="samples", vectorized=False)
    return found | {
        "low": low,
        "high": high,
        "p": test.pvalue,
        "p_holm": min(1, 3 * test.pvalue),
        "p_flips": flips.pvalue,
    }


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    return make_study(tmp_path)


@pytest.fixture
def study(study_folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study_folder / "study.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def study_maker() -> Callable[..., Path]:
    return make_study


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def run_maker() -> Callable[..., Path]:
    return make_run
