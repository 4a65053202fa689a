# [Task]: T007 [From]: specs/requirements.md
"""What stands between the wire and the endpoints."""
