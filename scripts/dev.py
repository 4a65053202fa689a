# [Task]: T014 [From]: specs/requirements.md
"""What `make run`, `make token` and `make client` do: a `.env`, tokens, the service, its document.

A development tool: it holds the signing secret. No endpoint ever makes a token.
"""

import argparse
import contextlib
import json
import secrets
import socket
import sys
import time
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import jwt

from db import check_database_settings
from kit.paths import CONTROLS, USER_ID_LENGTH
from kit.server import serve
from main import app
from settings import SettingsError, get_settings

ROOT = Path(__file__).parent.parent
DEMO_USER = "demo"
# Seconds: a week.
TOKEN_LIFETIME = 7 * 24 * 3600


def write_env(example: Path, env: Path) -> None:
    """Copy `.env.example` to `.env`, with a fresh secret, for the owner's eyes only.

    Raises FileExistsError rather than overwrite a secret that is in use.
    """
    lines = [
        f"BETTER_AUTH_SECRET={secrets.token_urlsafe(32)}"
        if line.startswith("BETTER_AUTH_SECRET=")
        else line
        for line in example.read_text().splitlines()
    ]
    env.touch(mode=0o600, exist_ok=False)
    env.write_text("\n".join(lines) + "\n")


def user_id(text: str) -> str:
    """A user id for which the service takes a token."""
    if not 1 <= len(text) <= USER_ID_LENGTH or CONTROLS.search(text):
        raise argparse.ArgumentTypeError(
            f"a user id has 1 to {USER_ID_LENGTH} characters, none of them a control character"
        )
    return text


def make_token(user: str) -> str:
    """A token for the user as the frontend would sign it. Raises SettingsError."""
    secret = get_settings().better_auth_secret
    if secret is None:
        raise SettingsError("BETTER_AUTH_SECRET is not set: there is nothing to sign a token with")
    now = int(time.time())
    claims = {"sub": user, "iat": now, "exp": now + TOKEN_LIFETIME}
    return jwt.encode(claims, secret.get_secret_value(), "HS256")


def first_steps(host: str, port: int) -> str:
    """What to do with a service that has just started: a page to open and a line to paste."""
    base = f"http://{'localhost' if host == '127.0.0.1' else host}:{port}"
    tasks = f"{base}/api/{quote(DEMO_USER)}/tasks"
    return (
        f"\nThe API's documentation:  {base}/docs\n"
        "Add a task (paste it into another terminal):\n\n"
        f"curl {tasks} -H 'Authorization: Bearer {make_token(DEMO_USER)}' "
        "-H 'Content-Type: application/json' -d '{\"title\": \"Buy milk\"}'\n"
    )


def openapi_document() -> str:
    """The OpenAPI document, as specs/openapi.json has it."""
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False)


def print_first_steps(host: str, port: int) -> None:
    """Say what to do next, once the service listens."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port)):
            break
        time.sleep(0.05)
    print(first_steps(host, port), flush=True)


def main() -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dev", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help="write .env with a fresh secret")
    commands.add_parser("token", help="print a token").add_argument("user", type=user_id)
    commands.add_parser("openapi", help="print the OpenAPI document")
    run = commands.add_parser("run", help="start the service")
    run.add_argument("--host", default="127.0.0.1")
    run.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "env":
                write_env(ROOT / ".env.example", ROOT / ".env")
                print("Wrote .env with a fresh secret.", file=sys.stderr)
            case "token":
                print(make_token(arguments.user))
            case "openapi":
                print(openapi_document())
            case "run":
                print(f"Starting the service on port {arguments.port}.", flush=True)
                where = {"host": arguments.host, "port": arguments.port, "workers": 1}
                settings = get_settings()
                check_database_settings(settings)
                return serve(
                    app,
                    settings.model_copy(update=where),
                    lambda port: Thread(
                        target=print_first_steps, args=(arguments.host, port), daemon=True
                    ).start(),
                )
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
