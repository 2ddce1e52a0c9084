"""What the C library's allocator costs a training step on a CPU: freed memory kept, and huge pages.

A large block goes back to the system when it is freed, and every page of the next one is a fault.
"""

from __future__ import annotations

from measure import Result, Variant, interleave
from step import Setup, eyeline_step
from worker import Worker

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Read by torch: blocks of 2 MB and more are aligned and advised to lie on huge pages."""


def measure_allocator(pair: tuple[str, str], batch: int, side: int, rounds: int) -> Result:
    """A step of attention transfer under each way of allocating."""
    ways: dict[str, tuple[bool, dict[str, str]]] = {
        "default": (False, {}),
        "kept": (True, {}),
        "huge pages": (False, HUGE_PAGES),
        "kept, huge pages": (True, HUGE_PAGES),
    }
    workers = {
        name: Worker(_step, pair, batch, side, keep=keep, environment=environment)
        for name, (keep, environment) in ways.items()
    }
    variants = {name: worker.variants()["step"] for name, worker in workers.items()}
    samples = interleave(variants, rounds, warmup=3)
    for worker in workers.values():
        worker.close()
    result = Result(f"Allocator, a step of attention transfer, batch {batch}", "s", samples)
    for name in list(ways)[1:]:
        result.ratio(name, "default")
    return result


def _step(pair: tuple[str, str], batch: int, side: int) -> dict[str, Variant]:
    return {"step": eyeline_step(Setup(*pair, batch, side, "cpu"), "at")}
