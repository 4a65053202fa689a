# [Task]: T054 [From]: specs/decisions.md
"""What is asked of uvicorn, the server that runs the app: an orderly end."""

import signal

import uvicorn


def running_server() -> uvicorn.Server | None:
    """The uvicorn that runs this process, if one does."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def stop_in_order() -> None:
    """Let an orderly stop by SIGTERM end with status 0.

    uvicorn raises the signal once more when it has stopped, and would be killed by it as if it had
    crashed. Blocked, the signal stays pending until the process has ended by itself.
    """
    if running_server() is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
