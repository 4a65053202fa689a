# [Task]: T096 [From]: specs/requirements.md
"""Every setting: how it may be written, what is refused or warned of, and that none is shown."""

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic import SecretStr, ValidationError
from support import SECRET

import settings
from kit.values import PUBLISHED_SECRET
from main import app
from settings import Settings, SettingsError, get_settings

ROOT = Path(settings.__file__).parent
URL = "https://app.example.com"
OTHER = "another secret of 32 bytes or more"

# Name, default (of the secret: what the fixture sets), what is written, what is read.
SETTINGS = [
    ("DATABASE_URL", "sqlite:///tasks.db", "postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    ("DATABASE_READ_URL", None, "postgresql://u:p@replica/d", "postgresql://u:p@replica/d"),
    ("BETTER_AUTH_SECRET", SECRET, OTHER, OTHER),
    ("BETTER_AUTH_SECRET_PREVIOUS", None, OTHER, OTHER),
    ("BETTER_AUTH_SECRETS", None, f"2:{OTHER}", f"2:{OTHER}"),
    ("BETTER_AUTH_URL", None, f"{URL}/", URL),
    ("BETTER_AUTH_JWKS_URL", None, f"{URL}/jwks", f"{URL}/jwks"),
    ("BETTER_AUTH_ISSUER", None, "https://issuer.example.com", "https://issuer.example.com"),
    ("BETTER_AUTH_AUDIENCE", None, "task-api", "task-api"),
    ("ALLOWED_ORIGINS", frozenset({"http://localhost:3000"}), URL, frozenset({URL})),
    ("TASKS_PER_USER", 10_000, "0", 0),
    ("DATABASE_POOL_SIZE", 10, "25", 25),
    ("DATABASE_POOL_TIMEOUT", 1.0, "0.25", 0.25),
    ("DATABASE_CONNECT_TIMEOUT", 2.0, "5", 5.0),
    ("DATABASE_STATEMENT_TIMEOUT", 1.5, "3.5", 3.5),
    ("API_DOCS", True, "off", False),
    ("HOST", "127.0.0.1", "[::1]", "::1"),
    ("PORT", 8000, "80", 80),
    ("WORKERS", 1, "4", 4),
    ("MAX_CONNECTIONS", 4096, "10", 10),
    ("KEEP_ALIVE_TIMEOUT", 60, "5", 5),
    ("ROOT_PATH", "", " /v1/ ", "/v1"),
    ("TLS_CERT", None, "cert.pem", "cert.pem"),
    ("TLS_KEY", None, "key.pem", "key.pem"),
    ("FORWARDED_ALLOW_IPS", "127.0.0.1,::1", " 10.1.2.3/8, ::1, ", "10.0.0.0/8,::1"),
    ("LOG_FORMAT", None, "JSON", "json"),
    ("LOG_LEVEL", "info", " Warn ", "warning"),
]
NAMES = [name for name, *_ in SETTINGS]
type Set = Callable[[str], None]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting but conftest.py's secret, and none remembered of another test's `.env`."""
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    settings._read.cache_clear()
    yield
    settings._read.cache_clear()


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets variables, written NAME=value and separated by line breaks; `-NAME` unsets one."""

    def have(variables: str) -> None:
        for line in variables.splitlines():
            name, _, value = line.lstrip().partition("=")
            if name.startswith("-"):
                monkeypatch.delenv(name[1:], raising=False)
            else:
                monkeypatch.setenv(name, value.replace("\\n", "\n"))

    return have


def value_of(name: str) -> object:
    value = getattr(get_settings(), name.lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def write_dotenv(line: str) -> None:
    Path(".env").write_text(f"{line}\n", encoding="utf-8")
    settings._read.cache_clear()


def refusal() -> str:
    """The message that stops the start."""
    with pytest.raises(SettingsError) as refused:
        get_settings()
    return str(refused.value)


class TestSources:
    def test_the_table_has_every_setting(self) -> None:
        assert {name.lower() for name in NAMES} == Settings.model_fields.keys()

    @pytest.mark.parametrize(("name", "default", "text", "value"), SETTINGS, ids=NAMES)
    def test_environment_dotenv_file_and_nothing(
        self, name: str, default: object, text: str, value: object, have: Set, tmp_path: Path
    ) -> None:
        have("BETTER_AUTH_ISSUER=https://issuer.example.com")
        if name != "BETTER_AUTH_ISSUER":
            assert value_of(name) == default
        have(f"{name}={text}")
        assert value_of(name) == value
        if name not in ("DATABASE_URL", "ALLOWED_ORIGINS"):
            # Empty is unset: what .env says counts.
            have(f"{name}=")
            write_dotenv(f"{name}={text}")
            assert value_of(name) == value
        # The environment wins over what .env says.
        write_dotenv(f"{name}=not usable")
        have(f"{name}={text}")
        assert value_of(name) == value
        if name in settings._FROM_FILES:
            (tmp_path / "value").write_text(f"{text}\n")
            have(f"-{name}\n{name}_FILE={tmp_path}/value")
            assert value_of(name) == value
            have(f"{name}={text}")
            assert refusal() == f"{name} and {name}_FILE are both set: remove one of them"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(None, "can't be read (No such file"), (b"", "is empty"), (b"\xff" * 32, "not UTF-8")],
    )
    def test_files_that_hold_no_value(
        self, content: bytes | None, reason: str, have: Set, tmp_path: Path
    ) -> None:
        if content is not None:
            (tmp_path / "value").write_bytes(content)
        have(f"-BETTER_AUTH_SECRET\nBETTER_AUTH_SECRET_FILE={tmp_path}/value")
        assert refusal().startswith("BETTER_AUTH_SECRET_FILE names a file that")
        assert reason in refusal()

    def test_unknown_names_in_dotenv_are_ignored(self) -> None:
        write_dotenv("COLOUR=blue")
        assert get_settings() == Settings(better_auth_secret=SecretStr(SECRET))

    def test_dotenv_that_is_not_utf8(self, have: Set) -> None:
        Path(".env").write_bytes(b"DATABASE_URL=sqlite:///\xff\xfe.db\n")
        assert refusal() == ".env is not UTF-8 text: save it as UTF-8"
        have("DATABASE_URL=sqlite:///x.db")
        assert value_of("DATABASE_URL") == "sqlite:///x.db"

    def test_dotenv_of_another_user(self, have: Set, monkeypatch: pytest.MonkeyPatch) -> None:
        # Nobody may look into pytest's own folders.
        with TemporaryDirectory() as folder, monkeypatch.context() as inside:
            inside.chdir(folder)
            Path(folder).chmod(0o755)
            write_dotenv("DATABASE_URL=sqlite:///x.db")
            Path(".env").chmod(0)
            with as_nobody():
                assert refusal().startswith(".env can't be read (Permission denied): ")
                # A lost secret must not become a throwaway database.
                have("DATABASE_URL=sqlite:///y.db")
                assert value_of("DATABASE_URL") == "sqlite:///y.db"

    def test_are_read_once_for_one_environment(self, have: Set) -> None:
        first = get_settings()
        Path(".env").write_text("DATABASE_POOL_SIZE=3\n")
        assert get_settings() is first
        have("PORT=81")
        assert value_of("DATABASE_POOL_SIZE") == 3


@contextmanager
def as_nobody() -> Iterator[None]:
    """Inside, the process may read no more than others may; root may read all."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


# What is written, and what a property of the settings is then.
MEANT = [
    ("WEB_CONCURRENCY=3", "workers", 3),
    ("WEB_CONCURRENCY=3\nWORKERS=2", "workers", 2),
    ("LOG_LEVEL=", "log_level", "info"),
    ("FORWARDED_ALLOW_IPS= * ", "forwarded_allow_ips", "*"),
    ("BETTER_AUTH_URL=http://localhost:3000", "jwks_url", "http://localhost:3000/api/auth/jwks"),
    ("BETTER_AUTH_URL=https://a.example/auth/", "jwks_url", "https://a.example/auth/jwks"),
    ("BETTER_AUTH_URL=https://A.example:443/auth", "issuers", ("https://a.example",)),
    ("BETTER_AUTH_URL=http://[::1]:3000", "audiences", ("http://[::1]:3000",)),
    ("BETTER_AUTH_URL=https://b\u00fccher.example", "issuers", ("https://xn--bcher-kva.example",)),
    (f"BETTER_AUTH_URL={URL}\nBETTER_AUTH_ISSUER=a, b,", "issuers", ("a", "b")),
    (f"BETTER_AUTH_URL={URL}\nBETTER_AUTH_AUDIENCE=a, b,", "audiences", ("a", "b")),
    (f"BETTER_AUTH_URL={URL}\nBETTER_AUTH_JWKS_URL=http://k/", "jwks_url", "http://k"),
    ("BETTER_AUTH_JWKS_URL=http://k/\nBETTER_AUTH_ISSUER=a", "audiences", ("a",)),
    ("BETTER_AUTH_AUDIENCE=a", "jwks_url", None),
    (f"-BETTER_AUTH_SECRET\nBETTER_AUTH_URL={URL}", "secrets", ()),
    (
        f"BETTER_AUTH_SECRETS=2:{OTHER}, 1:{OTHER}!",
        "secrets",
        (OTHER.encode(), f"{OTHER}!".encode(), SECRET.encode()),
    ),
    (f"BETTER_AUTH_SECRET_PREVIOUS={OTHER}", "secrets", (SECRET.encode(), OTHER.encode())),
    (
        "ALLOWED_ORIGINS= https://a.example/ ,HTTPS://A.example:443,",
        "allowed_origins",
        {"https://a.example"},
    ),
    ("ALLOWED_ORIGINS=http://b:80,http://b:443", "allowed_origins", {"http://b", "http://b:443"}),
    (
        "ALLOWED_ORIGINS=http://[::1]:3000,tauri://localhost",
        "allowed_origins",
        {"http://[::1]:3000", "tauri://localhost"},
    ),
    ("ALLOWED_ORIGINS=https://Stra\u00dfe.de", "allowed_origins", {"https://xn--strae-oqa.de"}),
    ("ALLOWED_ORIGINS=https://\u2615.de:8443", "allowed_origins", {"https://xn--53h.de:8443"}),
]

# Secrets are literal: what looks like something else is none of it.
LITERAL = [
    "x" * 30 + "yz",
    "\u00e9" * 16,
    f"  {SECRET}  ",
    f'"{SECRET}"',
    f"{SECRET} # not a comment",
    f"{SECRET}\\n\\u0041%41&amp;",
    f"{SECRET}${{PATH}}$PATH",
]

REFUSED = [
    ("-BETTER_AUTH_SECRET", "BETTER_AUTH_SECRET is missing"),
    ("BETTER_AUTH_SECRET=", "BETTER_AUTH_SECRET is missing"),
    (f"BETTER_AUTH_SECRET={' ' * 40}", "BETTER_AUTH_SECRET is blank"),
    (f"BETTER_AUTH_SECRET={PUBLISHED_SECRET}", "BETTER_AUTH_SECRET is the one that Better Auth"),
    ("BETTER_AUTH_SECRET=hunter2", "BETTER_AUTH_SECRET is too short (7 bytes of UTF-8)"),
    (f"BETTER_AUTH_SECRET={'\u00e9' * 15}x", "BETTER_AUTH_SECRET is too short (31 bytes"),
    (f"BETTER_AUTH_SECRET={SECRET}\udcff", "BETTER_AUTH_SECRET is not UTF-8"),
    ("BETTER_AUTH_SECRET_PREVIOUS=hunter2", "BETTER_AUTH_SECRET_PREVIOUS is too short"),
    (f"BETTER_AUTH_SECRET_PREVIOUS={SECRET}", "BETTER_AUTH_SECRET_PREVIOUS is the same"),
    (
        f"-BETTER_AUTH_SECRET\nBETTER_AUTH_URL={URL}\nBETTER_AUTH_SECRET_PREVIOUS={OTHER}",
        "BETTER_AUTH_SECRET is not",
    ),
    ("BETTER_AUTH_SECRETS=hunter2", "BETTER_AUTH_SECRETS must be <version>:<secret>"),
    (f"BETTER_AUTH_SECRETS=1:{OTHER},2:hunter2", "BETTER_AUTH_SECRETS is too short"),
    ("BETTER_AUTH_URL=hunter2", "BETTER_AUTH_URL must be a URL"),
    ("BETTER_AUTH_URL=https://user:hunter2@a.example", "BETTER_AUTH_URL must be a URL"),
    ("BETTER_AUTH_JWKS_URL=file:///hunter2", "BETTER_AUTH_JWKS_URL must be a URL"),
    ("BETTER_AUTH_JWKS_URL=https://k", "BETTER_AUTH_JWKS_URL is set, and whose tokens"),
    ("DATABASE_URL=", "DATABASE_URL is blank"),
    ("DATABASE_READ_URL=  ", "DATABASE_READ_URL is blank"),
    ("ALLOWED_ORIGINS=", "ALLOWED_ORIGINS is blank"),
    ("ALLOWED_ORIGINS= , ", "ALLOWED_ORIGINS is blank"),
    ("ALLOWED_ORIGINS=https://a.example,*", "ALLOWED_ORIGINS must not hold *"),
    ("ALLOWED_ORIGINS=https://hunter2.example/path", "ALLOWED_ORIGINS must be origins"),
    ("ALLOWED_ORIGINS=https://hunter2@a.example", "ALLOWED_ORIGINS must be origins"),
    ("ALLOWED_ORIGINS=https://a.example:hunter2", "ALLOWED_ORIGINS must be origins"),
    ("ALLOWED_ORIGINS=https://a.example https://b.example", "ALLOWED_ORIGINS must be origins"),
    ("ALLOWED_ORIGINS=null", "ALLOWED_ORIGINS must be origins"),
    ("DATABASE_POOL_SIZE=hunter2", "DATABASE_POOL_SIZE is not usable"),
    ("DATABASE_POOL_SIZE=0", "DATABASE_POOL_SIZE is not usable"),
    ("DATABASE_POOL_TIMEOUT=nan", "DATABASE_POOL_TIMEOUT is not usable"),
    ("FORWARDED_ALLOW_IPS=hunter2", "FORWARDED_ALLOW_IPS must be addresses"),
    ("ROOT_PATH=hunter2", "ROOT_PATH must be a path"),
    ("LOG_FORMAT=xml", "LOG_FORMAT is not usable"),
    ("BETTER_AUTH_SECRET=hunter2\nPORT=x", "PORT is not usable"),
]

WARNED = [
    (f"BETTER_AUTH_SECRET='{SECRET}'", "BETTER_AUTH_SECRET has quotes around it"),
    (f"BETTER_AUTH_SECRET={SECRET}\\n", "BETTER_AUTH_SECRET begins or ends with a space or line"),
    (f"BETTER_AUTH_SECRETS=1:{'x' * 40}", "BETTER_AUTH_SECRETS is easy to guess"),
    (f"BETTER_AUTH_SECRET_PREVIOUS={'changeme!' * 4}", "BETTER_AUTH_SECRET_PREVIOUS is easy"),
    ("BETTER_AUTH_SECRET=your-secret-goes-here-do-not-forget-it", "is easy to guess"),
    ("DATABASE_POOL_SIZE=5", "DATABASE_POOL_SIZE has no effect on SQLite"),
    ("HEADERS_TIMEOUT=5", "HEADERS_TIMEOUT has no effect"),
]


class TestValues:
    @pytest.mark.parametrize(("variables", "name", "value"), MEANT)
    def test_mean(self, variables: str, name: str, value: object, have: Set) -> None:
        have(variables)
        assert getattr(get_settings(), name) == value

    @pytest.mark.parametrize("secret", LITERAL)
    def test_secrets_are_literal(self, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
        assert value_of("BETTER_AUTH_SECRET") == secret
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        write_dotenv(f"BETTER_AUTH_SECRET='{secret}'")
        assert value_of("BETTER_AUTH_SECRET") == secret

    @pytest.mark.parametrize(("variables", "reason"), REFUSED)
    def test_refused_in_one_line_that_hides_them(
        self, variables: str, reason: str, have: Set
    ) -> None:
        have(variables)
        said = refusal()
        assert reason in said
        assert "\n" not in said
        assert "hunter2" not in said
        assert SECRET not in said

    @pytest.mark.parametrize(("variables", "warning"), WARNED)
    def test_warned_of(self, variables: str, warning: str, have: Set) -> None:
        assert get_settings().warnings == []
        have(variables)
        [said] = get_settings().warnings
        assert warning in said
        assert SECRET not in said

    def test_random_secrets_are_not_warned_of(self, have: Set) -> None:
        for size in range(24, 64):
            have(f"BETTER_AUTH_SECRET={os.urandom(size).hex()}")
            assert get_settings().warnings == []

    async def test_warnings_are_in_the_log_of_a_start(
        self, have: Set, caplog: pytest.LogCaptureFixture
    ) -> None:
        have(f"BETTER_AUTH_SECRET={'x' * 32}")
        async with app.router.lifespan_context(app):
            pass
        assert caplog.text.count("BETTER_AUTH_SECRET is easy to guess") == 1


class TestSettings:
    def test_show_no_secret(self, have: Set) -> None:
        have("DATABASE_URL=postgresql://user:hunter2@host/database")
        read = get_settings()
        for shown in (repr(read), str(read), f"{read.model_dump()}", read.model_dump_json()):
            assert "hunter2" not in shown
            assert SECRET not in shown
        written = {"better_auth_secret": "hunter2", "database_pool_size": "hunter2"}
        with pytest.raises(ValidationError) as refused:
            Settings.model_validate(written)
        assert "hunter2" not in f"{refused.value} {refused.value!r}"

    def test_are_frozen(self) -> None:
        read = get_settings()
        for name in Settings.model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(read, name, getattr(read, name))


PACKAGES = ("", "kit", "kit.database", "middleware", "routes", "tasks")
MODULES = [
    f"{package}.{module.name}".removeprefix(".")
    for package in PACKAGES
    for module in pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))])
    if not module.ispkg
]


def test_modules_do_not_import_each_other() -> None:
    """So each can be imported first."""
    graph = {}
    for module in MODULES:
        body = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body
        found = [node for node in body if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        graph[module] = (names | {node.module for node in found}) & {*MODULES}
    TopologicalSorter(graph).prepare()
    assert graph["tasks.queries"] >= {"db", "models"}


def test_import_needs_and_does_nothing(tmp_path: Path) -> None:
    assert {"main", "db", "routes.tasks", "kit.keys", "kit.database.execute"} <= {*MODULES}
    (tmp_path / ".env").write_bytes(b"\xff")  # Reading it would show.
    imports = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(MODULES)}"
    process = subprocess.run(
        [sys.executable, "-B", "-c", imports],
        env={"PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (process.stdout, process.returncode) == (b"", 0)
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
