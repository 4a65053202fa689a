# [Task]: T105 [From]: specs/design.md
"""What the task endpoints are made of: statements, pages, conditional requests, keys, limits."""
