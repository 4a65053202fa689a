# [Task]: T032 [From]: specs/requirements.md
"""Tests that break the database, the network and the process: `make faults`."""
