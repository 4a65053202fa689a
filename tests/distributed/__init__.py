# [Task]: T050 [From]: specs/requirements.md
"""The service on a real Citus cluster: `make distributed`."""
