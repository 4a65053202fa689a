# [Task]: T020 [From]: specs/requirements.md
"""Every setting: where it may come from, what is refused, and that nothing tells a secret."""

import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from support import SECRET

import settings
from settings import Settings, SettingsError, get_settings

ROOT = Path(settings.__file__).parent

# Name, default (of the secret: what the fixture sets), what is written, what is read.
SETTINGS = [
    ("DATABASE_URL", "sqlite:///tasks.db", "postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    ("BETTER_AUTH_SECRET", SECRET, "s" * 32, "s" * 32),
    ("BETTER_AUTH_SECRET_PREVIOUS", None, "p" * 32, "p" * 32),
    ("BETTER_AUTH_URL", None, "https://app.example.com", "https://app.example.com"),
    (
        "BETTER_AUTH_JWKS_URL",
        None,
        "https://keys.example.com/jwks",
        "https://keys.example.com/jwks",
    ),
    ("DATABASE_READ_URL", None, "postgresql://u:p@replica/d", "postgresql://u:p@replica/d"),
    ("BETTER_AUTH_ISSUER", None, "https://issuer.example.com", "https://issuer.example.com"),
    ("BETTER_AUTH_AUDIENCE", None, "task-api", "task-api"),
    (
        "ALLOWED_ORIGINS",
        frozenset({"http://localhost:3000"}),
        "https://app.example.com",
        frozenset({"https://app.example.com"}),
    ),
    ("TASKS_PER_USER", 10_000, "0", 0),
    ("DATABASE_POOL_SIZE", 10, "25", 25),
    ("DATABASE_POOL_TIMEOUT", 1.0, "0.25", 0.25),
    ("DATABASE_CONNECT_TIMEOUT", 2.0, "5", 5.0),
    ("DATABASE_STATEMENT_TIMEOUT", 1.5, "3.5", 3.5),
    ("HOST", "127.0.0.1", "0.0.0.0", "0.0.0.0"),  # noqa: S104  # Nothing listens there.
    ("PORT", 8000, "80", 80),
    ("WORKERS", 1, "4", 4),
    ("MAX_CONNECTIONS", 4096, "10", 10),
    ("KEEP_ALIVE_TIMEOUT", 60, "5", 5),
    ("ROOT_PATH", "", " /v1/ ", "/v1"),
    ("TLS_CERT", None, "cert.pem", "cert.pem"),
    ("TLS_KEY", None, "key.pem", "key.pem"),
    ("FORWARDED_ALLOW_IPS", "127.0.0.1,::1", " 10.0.0.0/8, ::1 ", "10.0.0.0/8, ::1"),
    ("LOG_FORMAT", None, "JSON", "json"),
    ("LOG_LEVEL", "info", " Warning ", "warning"),
]
NAMES = [name for name, *_ in SETTINGS]
each_setting_written = pytest.mark.parametrize(
    ("name", "text", "value"), [(name, text, value) for name, _, text, value in SETTINGS], ids=NAMES
)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting but the secret, and none remembered of another test's `.env`."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
    settings._read.cache_clear()
    yield
    settings._read.cache_clear()


def value_of(name: str) -> object:
    value = getattr(get_settings(), name.lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def write_dotenv(line: str) -> None:
    Path(".env").write_text(f"{line}\n", encoding="utf-8")


def refusal() -> str:
    """The message that stops the start."""
    with pytest.raises(SettingsError) as refused:
        get_settings()
    return str(refused.value)


class TestSources:
    def test_the_table_has_every_setting(self) -> None:
        assert {name.lower() for name in NAMES} == Settings.model_fields.keys()

    @pytest.mark.parametrize(("name", "default"), [row[:2] for row in SETTINGS], ids=NAMES)
    def test_default(self, name: str, default: object) -> None:
        assert value_of(name) == default

    @each_setting_written
    def test_environment(
        self,
        name: str,
        text: str,
        value: object,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv(name, text)
        assert value_of(name) == value

    @each_setting_written
    def test_dotenv_of_the_working_folder(
        self,
        name: str,
        text: str,
        value: object,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv(name, raising=False)
        write_dotenv(f"{name}={text}")
        assert value_of(name) == value

    @each_setting_written
    def test_environment_wins_over_dotenv(
        self,
        name: str,
        text: str,
        value: object,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write_dotenv(f"{name}=not usable")
        monkeypatch.setenv(name, text)
        assert value_of(name) == value

    def test_unknown_names_in_dotenv_are_ignored(self) -> None:
        assert get_settings() == Settings(better_auth_secret=SecretStr(SECRET))

    def test_dotenv_that_is_not_utf8_is_refused(self) -> None:
        Path(".env").write_bytes(b"DATABASE_URL=sqlite:///\xff\xfe.db\n")
        assert refusal() == ".env is not UTF-8 text: save it as UTF-8"


class TestSecret:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        message = refusal()
        assert message.startswith("BETTER_AUTH_SECRET is missing")
        assert ".env" in message
        assert "\n" not in message

    @pytest.mark.parametrize("secret", ["", "x" * 31, "é" * 15 + "x", "日" * 10 + "x"])
    def test_31_bytes_are_refused(self, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
        assert f"({len(secret.encode())} bytes of UTF-8)" in refusal()

    @pytest.mark.parametrize("secret", ["x" * 32, "é" * 16, "日" * 10 + "xy"])
    def test_32_bytes_are_enough(self, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
        assert value_of("BETTER_AUTH_SECRET") == secret

    @pytest.mark.parametrize(
        "secret",
        [
            f"  {SECRET}  ",
            f'"{SECRET}"',
            f"{SECRET} # not a comment",
            f"{SECRET}\\n\\u0041%41&amp;",
            f"{SECRET}${{PATH}}$PATH",
            '{"json": "' + SECRET + '"}',
            "c2VjcmV0IHRoYXQgbG9va3MgbGlrZSBiYXNlNjQgdGV4dA==",
        ],
    )
    def test_taken_literally(self, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
        assert value_of("BETTER_AUTH_SECRET") == secret

    @pytest.mark.parametrize(
        "secret",
        [
            f"{SECRET}${{PATH}}",
            f"{SECRET}${{NO_SUCH_VARIABLE}}",
            f"{SECRET}$PATH",
            f"{SECRET}#==",
            f"{SECRET}\\n%41",
        ],
    )
    def test_taken_literally_from_dotenv(
        self, secret: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        write_dotenv(f"BETTER_AUTH_SECRET={secret}")
        assert value_of("BETTER_AUTH_SECRET") == secret

    def test_bytes_that_are_not_utf8_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET + "\udcff")
        assert "BETTER_AUTH_SECRET" in refusal()


class TestPreviousSecret:
    """That of before a change: SECURITY.md."""

    @pytest.mark.parametrize("secret", ["x" * 31, SECRET])
    def test_is_another_of_32_bytes(self, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", secret)
        assert "BETTER_AUTH_SECRET_PREVIOUS is" in refusal()
        assert secret not in refusal()

    def test_takes_one_of_today(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        monkeypatch.setenv("BETTER_AUTH_URL", "https://app.example.com")
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", "p" * 32)
        assert "BETTER_AUTH_SECRET is not" in refusal()

    def test_is_none_where_it_is_blank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", "")
        assert get_settings().secrets == (SECRET.encode(),)


class TestBetterAuthURL:
    def test_makes_the_secret_optional(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        monkeypatch.setenv("BETTER_AUTH_URL", "https://app.example.com")
        assert get_settings().better_auth_secret is None

    @pytest.mark.parametrize(
        ("url", "jwks_url", "origin"),
        [
            (
                "http://localhost:3000",
                "http://localhost:3000/api/auth/jwks",
                "http://localhost:3000",
            ),
            ("https://a.example/", "https://a.example/api/auth/jwks", "https://a.example"),
            ("https://a.example/app", "https://a.example/app/api/auth/jwks", "https://a.example"),
            ("https://A.example:443", "https://A.example:443/api/auth/jwks", "https://a.example"),
            ("http://[::1]:3000", "http://[::1]:3000/api/auth/jwks", "http://[::1]:3000"),
        ],
    )
    def test_says_where_keys_are_and_who_issues(
        self, url: str, jwks_url: str, origin: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BETTER_AUTH_URL", url)
        read = get_settings()
        assert (read.jwks_url, read.issuer, read.audience) == (jwks_url, origin, origin)

    def test_gives_way_to_what_is_said_outright(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_URL", "https://app.example.com")
        monkeypatch.setenv("BETTER_AUTH_JWKS_URL", "https://keys.example.com/jwks")
        monkeypatch.setenv("BETTER_AUTH_ISSUER", "issuer")
        monkeypatch.setenv("BETTER_AUTH_AUDIENCE", "audience")
        read = get_settings()
        assert read.jwks_url == "https://keys.example.com/jwks"
        assert (read.issuer, read.audience) == ("issuer", "audience")


class TestAllowedOrigins:
    @pytest.mark.parametrize(
        ("text", "origins"),
        [
            ("https://a.example", {"https://a.example"}),
            ("https://a.example/", {"https://a.example"}),
            ("https://a.example,http://b:3000", {"https://a.example", "http://b:3000"}),
            (" https://a.example/ , http://b:3000/ ", {"https://a.example", "http://b:3000"}),
            ("https://a.example,", {"https://a.example"}),
            ("https://a.example, ,https://a.example", {"https://a.example"}),
            ("http://[::1]:3000", {"http://[::1]:3000"}),
            ("HTTPS://App.Example", {"https://app.example"}),
            ("tauri://localhost", {"tauri://localhost"}),
        ],
    )
    def test_accepted(self, text: str, origins: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALLOWED_ORIGINS", text)
        assert get_settings().allowed_origins == origins

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("*", "must not hold *"),
            ("https://a.example,*", "must not hold *"),
            ("https://*.example", "must not hold *"),
            ("https://a.example/path", "without a path"),
            ("https://a.example?query", "without a path"),
            ("https://user@a.example", "must be origins"),
            ("a.example", "must be origins"),
            ("https://a.example https://b.example", "must be origins"),
            ("null", "must be origins"),
            ("", "is blank"),
            (" , ", "is blank"),
        ],
    )
    def test_refused(self, text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALLOWED_ORIGINS", text)
        message = refusal()
        assert message.startswith("ALLOWED_ORIGINS ")
        assert reason in message


class TestForwardedAllowIPs:
    def test_may_be_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
        assert value_of("FORWARDED_ALLOW_IPS") == "*"


class TestMessages:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BETTER_AUTH_SECRET", "hunter2"),
            ("ALLOWED_ORIGINS", "https://hunter2.example/path"),
            ("BETTER_AUTH_URL", "hunter2"),
            ("BETTER_AUTH_URL", "https://user:hunter2@app.example.com"),
            ("BETTER_AUTH_JWKS_URL", "file:///hunter2"),
            ("DATABASE_POOL_SIZE", "hunter2"),
            ("DATABASE_POOL_SIZE", "0"),
            ("DATABASE_POOL_SIZE", "1001"),
            ("DATABASE_POOL_TIMEOUT", "hunter2"),
            ("DATABASE_POOL_TIMEOUT", "nan"),
            ("DATABASE_CONNECT_TIMEOUT", "-1"),
            ("DATABASE_CONNECT_TIMEOUT", "inf"),
            ("DATABASE_STATEMENT_TIMEOUT", ""),
            ("FORWARDED_ALLOW_IPS", "hunter2"),
            ("LOG_FORMAT", "xml"),
            ("LOG_LEVEL", "loud"),
            ("LOG_LEVEL", ""),
        ],
    )
    def test_name_the_variable_and_hide_its_value(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        message = refusal()
        assert message.startswith(f"{name} ")
        assert "hunter2" not in message
        assert "\n" not in message

    def test_name_every_bad_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", "hunter2")
        monkeypatch.setenv("DATABASE_URL", " ")
        monkeypatch.setenv("DATABASE_POOL_SIZE", "many")
        message = refusal()
        assert "DATABASE_URL is blank" in message
        assert "BETTER_AUTH_SECRET is too short" in message
        assert "DATABASE_POOL_SIZE is not usable" in message


class TestSettings:
    def test_show_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@host/database")
        read = get_settings()
        for shown in (repr(read), str(read), f"{read.model_dump()}", read.model_dump_json()):
            assert "hunter2" not in shown
            assert SECRET not in shown

    def test_refused_show_no_secret(self) -> None:
        written = {"better_auth_secret": "hunter2", "database_pool_size": "hunter2"}
        with pytest.raises(ValidationError) as refused:
            Settings.model_validate(written)
        assert "hunter2" not in f"{refused.value} {refused.value!r}"

    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_are_frozen(self, name: str) -> None:
        read = get_settings()
        with pytest.raises(ValidationError, match="frozen"):
            setattr(read, name, getattr(read, name))

    def test_are_read_once_for_one_environment(self) -> None:
        first = get_settings()
        write_dotenv("DATABASE_POOL_SIZE=3")
        assert get_settings() is first

    @each_setting_written
    def test_are_read_anew_for_a_changed_environment(
        self,
        name: str,
        text: str,
        value: object,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = get_settings()
        monkeypatch.setenv(name, text)
        assert get_settings() is not first
        assert value_of(name) == value


PACKAGES = ("kit", "kit.database", "middleware", "routes", "tasks")
MODULES = [
    module.name
    for folder, prefix in (("", ""), *((name, f"{name}.") for name in PACKAGES))
    for module in pkgutil.iter_modules([str(ROOT / folder.replace(".", "/"))], prefix)
    if not module.ispkg or module.name in PACKAGES
]

type Imported = dict[str, tuple[int, str, list[str]]]

# What others have written is imported once; each of ours in a child of its own, which has none yet.
IMPORTS = f"""
import json, os, sys
import aiosqlite, alembic.config, asyncpg, fastapi, httpx, jwt, sqlalchemy.ext.asyncio, sqlmodel
import uvicorn
sys.path.insert(0, {str(ROOT)!r})
exits = dict()
for module in sys.argv[1:]:
    if not (child := os.fork()):
        os.chdir(module)
        os.dup2(os.open(f"../{{module}}.output", os.O_CREAT | os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            __import__(module)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    exits[module] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(exits))
"""


@pytest.fixture(scope="class")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """Exit code, output and files left of `import MODULE` in a process that has no setting.

    The `.env` beside it can't be read as text, so that reading it would show.
    """
    folder = tmp_path_factory.mktemp("import")
    for module in MODULES:
        (folder / module).mkdir()
        (folder / module / ".env").write_bytes(b"\xff")
    process = subprocess.run(
        [sys.executable, "-B", "-c", IMPORTS, *MODULES],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return {
        module: (
            status,
            (folder / f"{module}.output").read_text(),
            [path.name for path in (folder / module).iterdir()],
        )
        for module, status in json.loads(process.stdout).items()
    }


class TestImport:
    def test_the_list_has_every_kind_of_module(self) -> None:
        assert {"main", "db", "models", "schemas", "settings", "errors"} <= set(MODULES)
        assert {"routes.tasks", "middleware.auth", "kit.database.execute", "kit.keys"} <= set(
            MODULES
        )

    @pytest.mark.parametrize("module", MODULES)
    def test_needs_and_does_nothing(self, module: str, imported: Imported) -> None:
        assert imported[module] == (0, "", [".env"])
