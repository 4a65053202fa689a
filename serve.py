# [Task]: T070 [From]: specs/requirements.md
"""`python -m serve` runs the app with the service's settings, under Granian (kit/server.py)."""

import logging
import logging.config
import sys

from db import check_database_settings
from kit.server import LOGGING, serve
from main import app
from settings import SettingsError, get_settings

logger = logging.getLogger("tasks.serve")

# The exit status if a setting is refused.
REFUSED = 3


def main() -> int:
    """Serve until a signal stops it and return the exit status."""
    logging.config.dictConfig(LOGGING)
    try:
        settings = get_settings()
        # Checked here, so that a mistake is logged once and not by each worker.
        check_database_settings(settings)
        return serve(app, settings)
    except SettingsError as error:
        logger.error("%s", error)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
