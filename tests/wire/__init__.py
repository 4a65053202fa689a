# [Task]: T078 [From]: specs/requirements.md
"""HTTP as it arrives at a server: raw bytes, which no client has tidied."""
