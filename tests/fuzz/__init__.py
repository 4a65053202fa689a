# [Task]: T058 [From]: specs/requirements.md
"""Requests that schemathesis makes of the OpenAPI document: run by `make fuzz`."""
