"""Put the figures of a study where the documentation shows them.

make demo
python scripts/publish_study.py benchmarks/results/demo.json README.md runs/demo \\
    --picture docs/images/attention.png
python scripts/publish_study.py benchmarks/results/few_labels.json docs/methods/README.md \\
    runs/few_labels runs/few_labels_gradients
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from eyeline.pages import read_study, study_markdown
from eyeline.studies.statistics import correct

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Copy ``study.json`` (and ``attention.png``), and rewrite the table between the page's marks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", help="JSON file to write")
    parser.add_argument("page", help="markdown file with <!-- table --> and <!-- /table -->")
    parser.add_argument("studies", type=Path, nargs="+", help="folders; those of one protocol make one table")
    parser.add_argument("--picture", help="where to copy attention.png")
    arguments = parser.parse_args()
    content = together([read_study(study) for study in arguments.studies])
    (ROOT / arguments.result).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if arguments.picture:
        shutil.copyfile(arguments.studies[0] / "attention.png", ROOT / arguments.picture)
    machine = f"{content['environment']['cores']} cores of an {content['environment']['processor']}"
    table = f"{study_markdown(content)}\nMeasured on {machine}; `{arguments.result}`.\n"
    page = ROOT / arguments.page
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)
    text, found = marked.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", page.read_text())
    if not found:
        parser.error(f"{page} has no <!-- table --> and <!-- /table -->")
    page.write_text(text)


def together(studies: list[dict[str, Any]]) -> dict[str, Any]:
    """One study of all methods; refused if the students alone differ."""
    for study in studies:
        study["environment"].pop("command")  # where the study lay is nobody's business
        for name in ("memory", "out"):
            study["recipe"].pop(name, None)
    first, *others = studies
    alone = [run["test_accuracy"] for run in first["methods"][0]["runs"]]
    for other in others:
        baseline, *methods = other["methods"]
        if [run["test_accuracy"] for run in baseline["runs"]] != alone:
            raise SystemExit("the studies differ in the student alone: they are not of one protocol")
        first["methods"] += methods
        first["recipe"]["methods"] |= other["recipe"]["methods"]
    correct(entry["difference"] for entry in first["methods"] if "difference" in entry)  # over all of them
    return first


if __name__ == "__main__":
    main()
