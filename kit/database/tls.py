# [Task]: T095 [From]: specs/requirements.md
"""TLS to the database: reads a URL's TLS parameters and connects with them."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from ssl import SSLContext, SSLError, VerifyMode
from typing import Any

import asyncpg

MODES = ("disable", "allow", "prefer", "require", "no-verify", "verify-ca", "verify-full")
# Values of `ssl` that other drivers use.
_SYNONYMS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}

# Values for asyncpg's `ssl`. They are tried in turn until one connects.
type Attempts = tuple[SSLContext | bool, ...]


class BadTLS(ValueError):
    """TLS parameters can't be used. The message continues a sentence after the setting's name."""


class NoTLS(ConnectionError):
    """The URL requires TLS and the server does not support it."""


def tls_attempts(parameters: Mapping[str, str], default: str) -> Attempts:
    """The attempts for sslmode, ssl, sslrootcert, sslcert, sslkey and channel_binding.

    `default` is the mode if the URL names none. Raises BadTLS.
    """
    mode = _mode(parameters, default)
    certificates = _certificates(parameters)
    match mode:
        case "disable":
            return (False,)
        case "allow":
            return False, _context(ssl.CERT_NONE, certificates)
        case "prefer":
            return _context(ssl.CERT_NONE, certificates), False
        case "require" if "sslrootcert" in parameters:  # As libpq does.
            mode = "verify-ca"
        case "require" | "no-verify":
            return (_context(ssl.CERT_NONE, certificates),)
    root = parameters.get("sslrootcert", "system")
    context = _context(ssl.CERT_REQUIRED, certificates, None if root == "system" else root)
    context.check_hostname = mode == "verify-full"
    return (context,)


def _mode(parameters: Mapping[str, str], default: str) -> str:
    named = {
        name: _SYNONYMS.get(parameters[name], parameters[name])
        for name in ("sslmode", "ssl")
        if name in parameters
    }
    for name, mode in named.items():
        if mode not in MODES:
            also = " or true or false" if name == "ssl" else ""
            raise BadTLS(f"is wrong: {name} must be one of {', '.join(MODES)}{also}")
    if len(set(named.values())) > 1:
        raise BadTLS("is wrong: sslmode and ssl differ: remove one of them")
    name, mode = next(iter(named.items()), ("sslmode", default))
    match parameters.get("channel_binding", "prefer"):
        case "prefer" | "disable":
            return mode
        case "require":
            # asyncpg does not support channel binding. Full verification prevents the same attack.
            if named and mode in ("disable", "allow", "prefer", "no-verify"):
                raise BadTLS(
                    f"asks for {name}={mode} and channel_binding=require, "
                    "which exclude each other: remove one of them"
                )
            return "verify-full"
        case _:
            raise BadTLS("is wrong: channel_binding must be require, prefer or disable")


def _certificates(parameters: Mapping[str, str]) -> tuple[str, str | None] | None:
    certificate, key = parameters.get("sslcert"), parameters.get("sslkey")
    if certificate is None:
        if key is not None:
            raise BadTLS("is wrong: sslkey is of use only together with sslcert")
        return None
    return certificate, key


def _context(
    verify: VerifyMode, certificates: tuple[str, str | None] | None, root: str | None = None
) -> SSLContext:
    if verify == ssl.CERT_NONE:
        context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = verify
    else:
        context = _loaded(
            "sslrootcert is not a readable file of certificates",
            lambda: ssl.create_default_context(cafile=root),
        )
        # libpq does not check this either, and certificates made by PostgreSQL's manual would fail.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if certificates is not None:
        # Without `password`, OpenSSL would prompt for a passphrase.
        _loaded(
            "sslcert and sslkey are not a readable certificate and its key, without a passphrase",
            lambda: context.load_cert_chain(*certificates, password=""),
        )
    return context


def _loaded[T](refusal: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (OSError, SSLError, ValueError):
        raise BadTLS(f"is wrong: {refusal}") from None


async def connect(*arguments: Any, ssl: Attempts, **options: Any) -> Any:
    """Like asyncpg.connect, but tries several values of `ssl`. Raises NoTLS in addition.

    asyncpg's own sslmode=prefer reads certificates in the home directory, and fails if it may not.
    """
    async with asyncio.timeout(options["timeout"]):
        *attempts, last = ssl
        for attempt in attempts:
            try:
                return await _connect(*arguments, ssl=attempt, **options)
            except Exception as error:
                if not _is_of_tls(error):
                    raise
        return await _connect(*arguments, ssl=last, **options)


async def _connect(*arguments: Any, ssl: SSLContext | bool, **options: Any) -> Any:
    try:
        return await asyncpg.connect(*arguments, ssl=ssl, **options)
    except ConnectionError as error:
        # asyncpg raises this very class if the server refuses TLS. Network errors are subclasses.
        if ssl and type(error) is ConnectionError:
            raise NoTLS(str(error)) from error
        raise


def _is_of_tls(error: Exception) -> bool:
    """Whether another attempt, with TLS or without, may succeed."""
    match error:
        case ConnectionError():
            # asyncpg's words when the TLS negotiation fails.
            return "SSL" in str(error) or "TLS" in str(error)
        case asyncpg.InvalidPasswordError():
            return False
        case _:
            return isinstance(
                error,
                (
                    SSLError,
                    asyncpg.InvalidAuthorizationSpecificationError,
                    asyncpg.ProtocolViolationError,
                ),
            )
