"""What it does, shown. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from eyeline.runs.run import Run
from eyeline.verbs._common import checked_arguments
from eyeline.verbs.study import study
from eyeline.verbs.train import train


@checked_arguments
def demo(
    out: str = "runs/demo",
    *,
    seeds: int | Sequence[int] | None = None,
    full: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Compare the student alone, KD, AT and AT+KD on real images, and write the page of the results.

    A teacher trained on all of Fashion-MNIST helps a student that has few labelled images of it; both come
    with the package. It takes a few minutes on two cores.

    Args:
        out: folder of the study
        seeds: how many (0, 1, ...), or a list of them (default: 6)
        full: train everything, teacher included, on the whole of Fashion-MNIST (hours)
        resume: continue the demo that is in the folder
        overwrite: replace the demo that is in the folder

    Returns:
        The finished study.
    """
    from eyeline.kinds import parse_yaml
    from eyeline.runs.folder import RESULT, claimed, is_run, remove_run

    name, place = "demo_full" if full else "demo", Path(out).expanduser()
    assets = resources.files("eyeline.data") / "assets"
    recipe = parse_yaml((assets / f"{name}.yaml").read_text("utf-8"))
    if full:
        taught, folder = recipe.pop("train_teacher"), place / "teacher"
        if not (folder / RESULT).exists() or overwrite:
            if overwrite and is_run(place / "study"):
                with claimed(place / "study"):
                    remove_run(place / "study")  # of the teacher that is replaced
            train(**taught, out=str(folder), resume=resume, overwrite=overwrite)
        recipe["teacher"], place = str(folder), place / "study"
    if seeds is not None:
        recipe["seeds"] = seeds
    # one by one: the figures of several at once differ in rounding
    recipe |= {"parallel": 1, "memory": str(place / "memory")}
    return study(**recipe, out=str(place), resume=resume, overwrite=overwrite)
