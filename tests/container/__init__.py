# [Task]: T062 [From]: specs/requirements.md
"""The image, made step by step in a bare Debian folder, and run: `make container`."""
