# [Task]: T100 [From]: specs/requirements.md
"""What openapi-generator makes of the OpenAPI document: run by `make generators`, needs Java."""
