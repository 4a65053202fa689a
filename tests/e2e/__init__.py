# [Task]: T031 [From]: specs/requirements.md
"""The service with a real Better Auth, a real browser and a real PostgreSQL: `make e2e`."""
