# [Task]: T041 [From]: specs/requirements.md
"""What runs, and how long it will go on, on the standard error."""

import sys
import time


class Progress:
    """`total` is the seconds that everything is thought to take; what was done corrects it."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._done = 0.0
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    def did(self, seconds: float, text: str) -> None:
        """Say that something is done that was thought to take so long."""
        self._done += seconds
        left = (self._total - self._done) * self.elapsed / self._done
        minutes, seconds = divmod(round(left), 60)
        print(f"[{minutes}:{seconds:02} left] {text}", file=sys.stderr, flush=True)
