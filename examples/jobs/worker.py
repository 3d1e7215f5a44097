"""A worker that does long jobs: copy it, and do your own work in `add_up`."""

import json
import logging

from tether.worker import Worker


def add_up(work):
    """Adds up squares, a step at a time, and goes on from where it was saved when its worker died."""
    spec = json.loads(work.spec)
    steps, save_every = spec["steps"], spec.get("save_every", 1)
    saved = work.load()
    total = json.loads(saved)["total"] if saved else 0
    for step in range(work.step, steps):
        # Sleeps instead of work, and raises when the job is cancelled or this worker is to end.
        work.wait(spec.get("seconds", 0.1))
        total += step * step
        if (step + 1) % save_every == 0:
            work.save(json.dumps({"total": total}).encode(), step=step + 1)
            work.progress((step + 1) / steps, f"{total} after {step + 1} steps")
    return json.dumps({"total": total})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    Worker(jobs=add_up, on_warning=lambda left: logging.warning("permission ends in %.1f s", left)).run()
