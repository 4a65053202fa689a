# [Task]: T010 [From]: specs/requirements.md
"""The endpoints."""
