# [Task]: T060 [From]: specs/requirements.md
"""Traces, metrics and log records for OpenTelemetry, where the environment asks for them."""
