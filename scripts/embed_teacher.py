"""Put a finished run of ``recipes/demo_teacher.yaml`` into the package, with the record of how it was made.

eyeline train --config recipes/demo_teacher.yaml --out runs/teacher
python scripts/embed_teacher.py runs/teacher
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from eyeline.data.sources.fashion_mnist import FASHION_MNIST_SHA256

ASSETS = Path(__file__).resolve().parent.parent / "src" / "eyeline" / "data" / "assets"
NAME = "wrn_16_2.fashion_mnist"


def main(run: Path) -> None:
    """Copy the weights of ``run`` and write the record beside them."""
    result = json.loads((run / "result.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    shutil.copyfile(run / "model.safetensors", ASSETS / f"{NAME}.safetensors")
    record = {
        "command": "eyeline train --config recipes/demo_teacher.yaml --out runs/teacher",
        "model": result["model"],
        "data": {**result["data"], "unpacked_sha256": FASHION_MNIST_SHA256},
        "seed": result["seed"],
        "test_accuracy": result["test_accuracy"],
        "validation_accuracy": result["validation_accuracy"],
        "versions": environment["versions"],
        "processor": environment["processor"],
        "cores": environment["cores"],
    }
    (ASSETS / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
