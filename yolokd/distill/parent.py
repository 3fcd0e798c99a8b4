"""A process that ends with the one that started it, even where that is killed hard."""

from __future__ import annotations

import os
import threading
import time


def end_with_parent(parent: str | None) -> None:
    """End when the process of that id, which started this one, is gone: nobody else would end what it began."""

    def watch() -> None:
        while os.getppid() == int(parent or 0):
            time.sleep(0.5)
        os._exit(143)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
