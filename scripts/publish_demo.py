"""Put the demo's figures and picture where the README shows them.

make demo
python scripts/publish_demo.py runs/demo
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from eyeline.report import read_study, study_markdown

ROOT = Path(__file__).resolve().parent.parent


def main(study: Path) -> None:
    """Copy ``study.json`` and ``attention.png``, and rewrite the table between the README's marks."""
    content = read_study(study)
    content["environment"].pop("command")  # where the study lay is nobody's business
    content["recipe"].pop("memory", None)
    (ROOT / "benchmarks" / "results" / "demo.json").write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    )
    pictures = ROOT / "docs" / "images"
    pictures.mkdir(exist_ok=True)
    shutil.copyfile(study / "attention.png", pictures / "attention.png")
    machine = f"{content['environment']['cores']} cores of an {content['environment']['processor']}"
    table = f"{study_markdown(content)}\nMeasured on {machine}; `benchmarks/results/demo.json`.\n"
    readme = ROOT / "README.md"
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)
    readme.write_text(marked.sub(lambda m: f"{m[1]}\n{table}\n{m[2]}", readme.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
