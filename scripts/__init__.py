# [Task]: T014 [From]: specs/requirements.md
"""Commands for development."""
