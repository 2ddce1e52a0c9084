"""Put a study's figures where the documentation shows them.

make demo
python scripts/publish_study.py runs/demo benchmarks/results/demo.json README.md docs/images/attention.png
python scripts/publish_study.py runs/few_labels benchmarks/results/few_labels.json docs/methods/README.md
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from eyeline.report import read_study, study_markdown

ROOT = Path(__file__).resolve().parent.parent


def main(study: Path, result: str, page: str, picture: str | None = None) -> None:
    """Copy ``study.json`` (and ``attention.png``), and rewrite the table between the page's marks."""
    content = read_study(study)
    content["environment"].pop("command")  # where the study lay is nobody's business
    content["recipe"].pop("memory", None)
    (ROOT / result).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if picture is not None:
        (ROOT / picture).parent.mkdir(exist_ok=True)
        shutil.copyfile(study / "attention.png", ROOT / picture)
    machine = f"{content['environment']['cores']} cores of an {content['environment']['processor']}"
    table = f"{study_markdown(content)}\nMeasured on {machine}; `{result}`.\n"
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)
    text, found = marked.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", (ROOT / page).read_text())
    if not found:
        raise SystemExit(f"{page} has no <!-- table --> and <!-- /table -->")
    (ROOT / page).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
