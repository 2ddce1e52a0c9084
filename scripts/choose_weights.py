"""Choose the weight of each method on validation images, for few labels: WRN-16-2 teaches WRN-16-1.

    python scripts/choose_weights.py runs/weights --data_root FOLDER

The protocol is that of recipes/demo.yaml, on 1,000 other images of Fashion-MNIST, with 6,000 images for
validation that the teacher has not seen either. Writes benchmarks/results/weights.json. Runs that are
finished are not repeated. A weight with which a run diverges has no accuracies, and counts as 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

import eyeline
from eyeline.errors import TrainingStopped
from eyeline.runs.provenance import environment

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1)
LINEAR = {"schedule": "linear"}


def weights(*values: float, **options: Any) -> list[dict[str, Any]]:
    """The same options with several weights."""
    return [{**options, "weight": value} for value in values]


CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "ce": [{}],
    "kd": [{}],
    "at": weights(1000, **LINEAR) + weights(1, 4, 16, reduction="norm", **LINEAR),
    "act": weights(1000) + weights(4, 16, reduction="norm"),
    "hint": weights(1, 10, 100),
    "cam": weights(100, 1000, 10000) + weights(1000, **LINEAR),
    "cat": weights(0.1, 1, 10) + weights(1, **LINEAR),
    "aft": weights(0.3, 1, 3),
    "gat": weights(0.001, 0.01, 0.1) + weights(1, 4, where="features", compare="map", **LINEAR),
    "sym": weights(0.001, 0.01, 0.1),
    "grad_reg": weights(0.0001, 0.001, 0.01, 0.1),
    "sp": weights(30, 100, 300, 3000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data_root", help="where Fashion-MNIST lies")
    arguments = parser.parse_args()
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text("utf-8"))
    for name in ("methods", "seeds", "data", "validate_every"):
        recipe.pop(name)
    recipe["train_size"] = 1000
    found: dict[str, Any] = {}
    for method, candidates in CANDIDATES.items():
        tried = []
        for options in candidates:
            name = "_".join([method, *(f"{k}={v}" for k, v in options.items())])
            accuracies = []
            for seed in SEEDS:
                try:
                    run = eyeline.distill(
                        data="fashion_mnist",
                        method={method: options},
                        out=str(arguments.out / name / f"seed-{seed}"),
                        seed=seed,
                        resume=True,
                        memory=str(arguments.out / "memory"),
                        memory_budget=8,
                        data_root=arguments.data_root,
                        validate_every=recipe["epochs"],
                        **recipe,
                    )
                except TrainingStopped as stopped:
                    print(stopped)
                    break
                accuracies.append(run.result["validation_accuracy"])
            diverged = len(accuracies) < len(SEEDS)
            mean = 0.0 if diverged else statistics.mean(accuracies)
            tried.append({"options": options, "validation_accuracy": accuracies, "mean": mean})
            spread = 0.0 if diverged else statistics.stdev(accuracies)
            print(f"{100 * mean:5.2f} ± {100 * spread:.2f}  {name}", flush=True)
        found[method] = {"tried": tried, "chosen": max(tried, key=lambda entry: entry["mean"])["options"]}
    content = {
        "kind": "weights",
        "protocol": {**recipe, "data": "fashion_mnist", "seeds": list(SEEDS)},
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "methods": found,
    }
    (ROOT / "benchmarks" / "results" / "weights.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
