"""Training: the loop (`loop`), what it begins with (`begin`), and what it measures (`measures`)."""

from steprl.train.loop import Event, run_warm_start, train

__all__ = ["Event", "run_warm_start", "train"]
