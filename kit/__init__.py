# [Task]: T105 [From]: specs/design.md
"""The machinery: it knows nothing of tasks. README.md says what each part does and buys."""
