# [Task]: T008 [From]: specs/requirements.md
"""Tokens: what a valid one is, and the keys that Better Auth publishes."""
