"""Write what each method costs into its documentation: ``python benchmarks/method_table.py FILE.json``.

The table goes between the marks of docs/methods/README.md, and is printed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "methods" / "README.md"
BEGIN, END = "<!-- cost -->", "<!-- /cost -->"
KINDS = {"live": "live teacher", "remembered": "teacher remembered"}


def table(record: Mapping[str, Any]) -> str:
    """The methods' steps over the student's own, from the record of a benchmark, in Markdown.

    Raises:
        SystemExit: the record has no section ``methods``.
    """
    ratios = next((r["ratios"] for r in record["results"] if r["section"] == "methods"), None)
    if ratios is None:
        raise SystemExit("the file has no section 'methods': python benchmarks/run.py --only methods")
    methods = dict.fromkeys(name.split()[0] for name in ratios)
    rows = [
        [f"`{method}`", *(_shown(ratios.get(f"{method} {kind} / student alone")) for kind in KINDS)]
        for method in methods
    ]
    lines = [["method", *KINDS.values()], ["---"] * 3, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio['median']:.2f} [{ratio['lower_quartile']:.2f}, {ratio['upper_quartile']:.2f}]"


def rewrite(page: Path, content: str) -> None:
    """Put content between the marks of a page.

    Raises:
        SystemExit: the page has no marks.
    """
    before = page.read_text(encoding="utf-8")
    if not re.search(f"{BEGIN}.*{END}", before, re.DOTALL):
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    after = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{content}\n{END}", before, flags=re.DOTALL)
    page.write_text(after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "record", type=Path, help="stored by benchmarks/run.py --only methods --out FILE.json"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="with the marks (default: %(default)s)")
    arguments = parser.parse_args()
    content = table(json.loads(arguments.record.read_text(encoding="utf-8")))
    print(content)
    rewrite(arguments.page, content)


if __name__ == "__main__":
    main()
