# [Task]: T096 [From]: specs/requirements.md
"""Reads variables from environment, `.env` and files, and parses origins, networks and secrets."""

import ipaddress
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import idna
from dotenv import dotenv_values

DEFAULT_PORTS = {"http": 80, "https": 443}
# Better Auth's public default secret.
PUBLISHED_SECRET = "better-auth-secret-12345678901234567890"  # noqa: S105
# A random secret of 32 characters has more distinct characters than this.
FEW_CHARACTERS = 8
_WORDS = re.compile(
    "change.?me|password|passw0rd|your.?secret|my.?secret|super.?secret|secret.?key|example"
    "|placeholder|123456789|abcdefgh|qwerty",
    re.IGNORECASE,
)


class Unreadable(Exception):
    """The source of a variable can't be read. The message names it and says what to do."""


def read_variables(
    names: Collection[str],
    *,
    from_files: Collection[str],
    refused_when_empty: Collection[str],
    is_enough: Callable[[Collection[str]], bool],
) -> dict[str, str]:
    """The variables of the environment, and those of `.env` that the environment lacks.

    An empty variable counts as unset, except those in `refused_when_empty`. Those in `from_files`
    may also be given as `<NAME>_FILE`. An unreadable `.env` is ignored if the environment's names
    are enough for `is_enough`. Raises Unreadable.
    """
    files = {f"{name}_FILE": name for name in from_files}

    def known(given: Mapping[str, str | None]) -> dict[str, str]:
        return {
            name: value
            for name, value in given.items()
            if (name in names or name in files)
            and value is not None
            and (value or name in refused_when_empty)
        }

    variables = known(os.environ)
    there = {files.get(name, name) for name in variables}
    try:
        # No interpolation: a `$` in a secret is literal.
        written = known(dotenv_values(".env", interpolate=False))
    except (OSError, UnicodeDecodeError) as error:
        if not is_enough(there):
            raise Unreadable(_dotenv_refusal(error)) from None
    else:
        variables |= {n: v for n, v in written.items() if files.get(n, n) not in there}
    for file_name, name in files.items():
        if file_name in variables:
            if name in variables:
                raise Unreadable(f"{name} and {file_name} are both set: remove one of them")
            variables[name] = _content(file_name, variables.pop(file_name))
    return variables


def _dotenv_refusal(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return ".env is not UTF-8 text: save it as UTF-8"
    return (
        f".env can't be read ({error.strerror}): let the user of this process read it, or set "
        "its variables in the environment"
    )


def _content(name: str, path: str) -> str:
    try:
        # Editors and shells end a file with a line break.
        content = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise Unreadable(f"{name} names a file that can't be read ({error.strerror})") from None
    except ValueError:  # Not UTF-8, or a NUL in the path.
        raise Unreadable(f"{name} names a file that is not UTF-8 text") from None
    if not content.strip():
        raise Unreadable(f"{name} names a file that is empty")
    return content


def origin(url: str) -> str:
    """The origin of a URL as browsers write it: lower case, ASCII, without its default port."""
    parts = urlsplit(url)
    host = _ascii_host(parts.hostname or "")
    port = "" if parts.port in (None, DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def _ascii_host(host: str) -> str:
    """The ASCII form of a host name (UTS 46). It accepts emoji, as browsers do."""
    if host.isascii():
        return host.lower()
    try:
        labels = idna.uts46_remap(host, std3_rules=False).split(".")
    except idna.IDNAError:
        raise ValueError("holds a name that no host can have") from None
    return ".".join(
        label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in labels
    )


def comma_separated(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def networks(text: str) -> str:
    """A list of addresses and networks, normalised. Raises ValueError.

    A network may be written with any of its addresses.
    """
    return ",".join(map(_network, comma_separated(text)))


def _network(text: str) -> str:
    network = ipaddress.ip_network(text, strict=False)
    return str(network) if "/" in text else text


def secret_versions(text: str) -> list[str]:
    """The secrets of Better Auth's `<version>:<secret>`, comma-separated. Raises ValueError."""
    entries = [entry.strip().partition(":") for entry in text.split(",")]
    if not all(re.fullmatch(r"\s*\d+\s*", version) and secret for version, _, secret in entries):
        raise ValueError("must be <version>:<secret>, comma-separated, each version a number")
    return [secret.strip() for _, _, secret in entries]


def doubt_of_secret(secret: str) -> str | None:
    """The likely mistake in a secret, to follow its name in a sentence; None if there is none."""
    if secret[:1] in "'\"" and secret[-1:] == secret[:1]:
        return (
            "has quotes around it, which are part of it: remove them, unless the frontend has them"
        )
    if secret != secret.strip():
        return "begins or ends with a space or line break, which is part of it: remove it"
    repeats = (secret + secret).find(secret, 1) < len(secret)
    if repeats or len(set(secret)) < FEW_CHARACTERS or _WORDS.search(secret):
        return (
            "is easy to guess: `openssl rand -base64 32` makes a better one, also for the frontend"
        )
    return None
