# [Task]: T009 [From]: specs/design.md
"""The database, from the URL to a statement's rows; ../db.py is what endpoints see of it."""
