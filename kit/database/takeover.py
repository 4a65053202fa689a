# [Task]: T085 [From]: specs/requirements.md
# ruff: noqa: S608  # The names in these statements come from migrations.
"""Takes over a table of an earlier service: checks that it fits, then adapts it.

It checks everything before it changes anything. A table that does not fit is left alone.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    DefaultClause,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    text,
)
from sqlalchemy.types import TypeEngine

from kit.database.tables import TablesRefused


def take_over(
    connection: Connection,
    name: str,
    columns: Sequence[Column[Any]],
    later: Sequence[Column[Any]] = (),
    fills: Mapping[str, str] | None = None,
) -> bool:
    """Adapt an existing table so that it has these columns. Returns False if there is no table.

    `later` are columns of later migrations, which the table may already have. `fills` maps columns
    to the SQL that replaces NULL in them. Raises TablesRefused before it changes anything.
    """
    kind = _PostgreSQLTable if connection.dialect.name == "postgresql" else _SQLiteTable
    table = kind(connection, name)
    if not table.exists:
        return False
    fills = fills or {}
    if problems := list(_problems(table, columns, later, fills)):
        raise TablesRefused(
            f"the table {table.name} is not of this service's design and is left alone: "
            f"{'; '.join(problems)}. Mend or rename it, or set DATABASE_URL to another database"
        )
    table.mend(columns, fills)
    return True


class _Found(NamedTuple):
    """A column as the database has it."""

    type: str
    not_null: bool
    default: str | None
    # Why the column can't be used, if it is generated or has a collation of its own.
    oddity: str = ""


def _problems(
    table: "_Table",
    columns: Sequence[Column[Any]],
    later: Sequence[Column[Any]],
    fills: Mapping[str, str],
) -> Iterator[str]:
    yield from table.oddities()
    if not table.columns:
        return  # Not an ordinary table.
    for column in columns:
        found = table.columns.get(column.name)
        if found is None:
            yield f"column {column.name} is missing"
        elif unfit := table.unfit(column, found):
            yield f"column {column.name} {unfit}"
        elif not column.nullable and column.name not in fills and table.has_null(column.name):
            yield f"column {column.name} is NULL in some rows"
    for column in later:
        if column.name in table.columns and (
            unfit := table.unfit(column, table.columns[column.name])
        ):
            yield f"column {column.name} {unfit}"
    known = {column.name for column in (*columns, *later)}
    for name, found in table.columns.items():
        if name not in known and found.not_null and found.default is None:
            yield f"column {name} is unknown here, NOT NULL and has no default"


class _Table(ABC):
    """The relation that a database has under a name. `columns` is empty if it is no table."""

    exists: bool
    name: str
    columns: Mapping[str, _Found]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @abstractmethod
    def oddities(self) -> Iterator[str]:
        """Reasons other than columns why the service can't use the table."""

    @abstractmethod
    def unfit(self, column: Column[Any], found: _Found) -> str:
        """Why the column can't be adapted; empty if it can."""

    @abstractmethod
    def mend(self, columns: Sequence[Column[Any]], fills: Mapping[str, str]) -> None:
        """Adapt these columns, and fill their NULLs with SQL values by column name."""

    def has_null(self, name: str) -> bool:
        return not self.columns[name].not_null and self._any(f"{name} IS NULL")

    def _any(self, condition: str) -> bool:
        return bool(self._scalar(f"SELECT EXISTS (SELECT 1 FROM {self.name} WHERE {condition})"))

    def _scalar(self, sql: str, **values: object) -> Any:
        return self._connection.scalar(text(sql), values)

    def _run(self, sql: str) -> None:
        self._connection.execute(text(sql))

    def _fill(self, fills: Mapping[str, str]) -> None:
        for name, value in fills.items():
            if self.has_null(name):
                self._run(f"UPDATE {self.name} SET {name} = {value} WHERE {name} IS NULL")

    def _default(self, column: Column[Any]) -> str | None:
        """The SQL of the column's server default, if it has one."""
        if not isinstance(column.server_default, DefaultClause):
            return None
        value = column.server_default.arg
        return value if isinstance(value, str) else str(value.compile(self._connection))


class _PostgreSQLTable(_Table):
    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__(connection)
        self._oid = self._scalar("SELECT CAST(to_regclass(:name) AS oid)", name=name)
        self.exists = self._oid is not None
        if not self.exists:
            return
        self.name = self._scalar(_PG_NAME, oid=self._oid)
        rows = connection.execute(text(_PG_COLUMNS), {"oid": self._oid})
        self.columns = {
            row.name: _Found(row.type, row.not_null, row.value, row.oddity) for row in rows
        }

    def oddities(self) -> Iterator[str]:
        yield from self._connection.scalars(text(_PG_ODDITIES), {"oid": self._oid})

    def unfit(self, column: Column[Any], found: _Found) -> str:
        if found.oddity:
            return found.oddity
        if _pg_type(column.type, found.type) is None:
            return f"is {found.type}, not {column.type.compile(self._connection.dialect)}"
        if column.primary_key and not (found.default or "").startswith(("nextval(", "identity")):
            return "does not number new rows"
        return ""

    def mend(self, columns: Sequence[Column[Any]], fills: Mapping[str, str]) -> None:
        types, rules = [], []
        for column in columns:
            name, found, default = column.name, self.columns[column.name], self._default(column)
            if new_type := _pg_type(column.type, found.type):
                # Times without a zone were written as UTC.
                utc = f" USING {name} AT TIME ZONE 'UTC'" if "without" in found.type else ""
                types.append(f"ALTER {name} TYPE {new_type}{utc}")
            if found.not_null == column.nullable:
                rules.append(f"ALTER {name} {'DROP' if column.nullable else 'SET'} NOT NULL")
            if default is not None and found.default != default:
                rules.append(f"ALTER {name} SET DEFAULT {default}")
        if types:
            self._run(f"ALTER TABLE {self.name} {', '.join(types)}")
        self._fill(fills)
        if rules:
            self._run(f"ALTER TABLE {self.name} {', '.join(rules)}")
        sequence = self._scalar(_PG_SEQUENCE, oid=self._oid)
        if sequence is not None:
            self._run(f"ALTER SEQUENCE {sequence} AS bigint")


def _pg_type(wanted: TypeEngine[Any], found: str) -> str | None:
    """The type to change a column to. Empty if it can stay, None if it can't be changed."""
    match wanted:
        case BigInteger():
            return {"bigint": "", "integer": "bigint", "smallint": "bigint"}.get(found)
        case Boolean():
            return {"boolean": ""}.get(found)
        case LargeBinary():
            return {"bytea": ""}.get(found)
        case DateTime() if re.fullmatch(r"timestamp(\(\d\))? with(out)? time zone", found):
            return "" if found == "timestamp with time zone" else "timestamptz"
        case String(length=limit) if fits := re.fullmatch(
            r"text|character varying(\((\d+)\))?", found
        ):
            if fits[2] is None or (limit is not None and int(fits[2]) >= limit):
                return ""
            return "text" if limit is None else f"varchar({limit})"
        case _:
            return None


_PG_NAME = """
    SELECT quote_ident(nspname) || '.' || quote_ident(relname)
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = :oid
"""
_PG_COLUMNS = """
    SELECT attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS not_null,
        CASE WHEN attidentity = '' THEN pg_get_expr(adbin, adrelid) ELSE 'identity' END AS value,
        CASE
            WHEN attgenerated <> '' THEN 'is generated'
            WHEN NOT collisdeterministic THEN 'has a collation that is not deterministic'
            ELSE ''
        END AS oddity
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    LEFT JOIN pg_collation ON pg_collation.oid = attcollation
    WHERE pg_class.oid = :oid AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum
"""
# The only foreign key that is allowed is user_id's, to Better Auth's users.
_PG_ODDITIES = """
    WITH t AS (SELECT * FROM pg_class WHERE oid = :oid), key AS (
        SELECT attnum FROM t JOIN pg_attribute ON attrelid = t.oid AND attname = 'id'
    ), citus AS (  -- It puts this trigger on each table that it distributes.
        SELECT FROM pg_trigger JOIN t ON tgrelid = t.oid JOIN pg_proc ON pg_proc.oid = tgfoid
        WHERE proname = 'citus_truncate_trigger'
    )
    SELECT 'it is ' || CASE relkind
        WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table'
        WHEN 'p' THEN 'a partitioned table' WHEN 'S' THEN 'a sequence' ELSE 'no table' END
    FROM t WHERE relkind <> 'r'
    UNION ALL SELECT 'it is unlogged or temporary' FROM t WHERE relpersistence <> 'p'
    UNION ALL SELECT 'it is part of an inheritance' FROM t
    WHERE EXISTS (SELECT FROM pg_inherits WHERE t.oid IN (inhrelid, inhparent)) AND relkind = 'r'
    UNION ALL SELECT 'it has row level security' FROM t WHERE relrowsecurity
    UNION ALL SELECT 'its primary key is not id' FROM t
    WHERE relkind = 'r' AND NOT EXISTS (
        SELECT FROM pg_constraint JOIN key ON conkey = ARRAY[attnum]
            OR EXISTS (SELECT FROM citus)
                AND pg_get_constraintdef(pg_constraint.oid) = 'PRIMARY KEY (user_id, id)'
        WHERE conrelid = t.oid AND contype = 'p' AND NOT condeferrable)
    UNION ALL SELECT 'it has the trigger ' || quote_ident(tgname)
    FROM pg_trigger JOIN t ON tgrelid = t.oid WHERE NOT tgisinternal
    UNION ALL SELECT 'it has the rule ' || quote_ident(rulename)
    FROM pg_rewrite JOIN t ON ev_class = t.oid WHERE relkind = 'r'
    UNION ALL SELECT 'it has the constraint ' || quote_ident(conname)
    FROM pg_constraint JOIN t ON conrelid = t.oid
    WHERE contype IN ('c', 't', 'x') OR contype = 'f' AND NOT (
        confrelid IS NOT DISTINCT FROM to_regclass('"user"') AND conkey = ARRAY[(
            SELECT attnum FROM pg_attribute WHERE attrelid = t.oid AND attname = 'user_id')])
    UNION ALL SELECT 'it has the unique index ' || indexrelid::regclass
    FROM pg_index JOIN t ON indrelid = t.oid
    WHERE indisunique AND NOT indisprimary AND (SELECT attnum FROM key) <> ALL (indkey)
        AND indexrelid IS DISTINCT FROM to_regclass('ux_task_user_id_idempotency_key')
    UNION ALL SELECT 'the table ' || conrelid::regclass || ' refers to it'
    FROM pg_constraint JOIN t ON confrelid = t.oid WHERE contype = 'f' AND conrelid <> t.oid
"""
# The sequence that numbers new rows, unless it has 64 bits already.
_PG_SEQUENCE = """
    SELECT CAST(CAST(seqrelid AS regclass) AS text) FROM pg_sequence
    WHERE seqtypid <> 'bigint'::regtype AND seqrelid IN (
        SELECT objid FROM pg_depend
        JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
        WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
            AND refobjid = :oid AND attname = 'id' AND deptype IN ('a', 'i')
        UNION
        SELECT refobjid FROM pg_depend JOIN pg_attrdef ON pg_attrdef.oid = objid
        JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
        WHERE classid = 'pg_attrdef'::regclass AND refclassid = 'pg_class'::regclass
            AND adrelid = :oid AND attname = 'id'
    )
"""


class _SQLiteTable(_Table):
    """SQLite stores any value in any column, so this checks the values, too."""

    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__(connection)
        self.name = name
        row = connection.execute(text(_SQLITE_TABLE), {"name": name}).one_or_none()
        self.exists = row is not None
        if row is None:
            return
        self._kind, self._sql = row.kind, row.sql or ""
        rows = connection.execute(text(_SQLITE_COLUMNS), {"name": name})
        self.columns = {
            row.name: _Found(row.type.upper(), bool(row.not_null), row.value, row.oddity)
            for row in rows
            if self._kind == "table"
        }

    def oddities(self) -> Iterator[str]:
        if self._kind != "table":
            yield f"it is {self._kind}"
            return
        # No pragma shows these, so look for them in the SQL of the table.
        sql = re.sub(_SQLITE_BOOLEAN_CHECK, "", self._sql, flags=re.IGNORECASE)
        for words, meaning in _SQLITE_ODD_WORDS.items():
            if re.search(words, sql, re.IGNORECASE):
                yield meaning
        yield from self._connection.scalars(text(_SQLITE_ODDITIES), {"name": self.name})

    def unfit(self, column: Column[Any], found: _Found) -> str:
        if found.oddity:
            return found.oddity
        name, wanted = column.name, column.type.compile(self._connection.dialect)
        declared, fitting = _SQLITE_TYPES[type(column.type)]
        if not re.search(declared, found.type):
            return f"is {found.type or 'of no type'}, not {wanted}"
        if self._any(f"NOT ({name} IS NULL OR {fitting.format(name)})"):
            return f"holds values that are no {wanted}"
        if isinstance(column.type, DateTime) and self._instants(name) is None:
            return f"holds values that are no {wanted}"
        return ""

    def mend(self, columns: Sequence[Column[Any]], fills: Mapping[str, str]) -> None:
        for column in columns:
            if isinstance(column.type, DateTime) and (instants := self._instants(column.name)):
                changed = f"UPDATE {self.name} SET {column.name} = :instant WHERE rowid = :row"
                self._connection.execute(text(changed), instants)
        self._fill(fills)
        if not all(self._is_as_wanted(column) for column in columns):
            self._rebuild(columns)

    def _instants(self, name: str) -> list[dict[str, object]] | None:
        """Times in other forms, converted to this service's form. None if a value is no time."""
        form = "0000-00-00 00:00:00.000000".replace("0", "[0-9]")
        others = f"SELECT rowid, {name} FROM {self.name} WHERE {name} NOT GLOB '{form}'"
        try:
            return [
                {"row": row, "instant": _in_utc(datetime.fromisoformat(written))}
                for row, written in self._connection.execute(text(others))
            ]
        except ValueError:
            return None

    def _is_as_wanted(self, column: Column[Any]) -> bool:
        found = self.columns[column.name]
        if column.primary_key:
            return found.type == "INTEGER" and "AUTOINCREMENT" in self._sql.upper()
        has_default = found.default is not None or self._default(column) is None
        return has_default and found.not_null != column.nullable

    def _rebuild(self, columns: Sequence[Column[Any]]) -> None:
        """Copy the rows into a new table, since SQLite can't alter columns."""
        known = {column.name for column in columns}
        others = [
            Column(
                each["name"],
                each["type"],
                server_default=each["default"] and text(each["default"]),
                nullable=each["nullable"],
            )
            for each in inspect(self._connection).get_columns(self.name)
            if each["name"] not in known
        ]
        new = Table(f"{self.name}_new", MetaData(), *columns, *others, sqlite_autoincrement=True)
        new.create(self._connection)
        names = ", ".join(f'"{column.name}"' for column in new.columns)
        indexes = list(self._connection.scalars(text(_SQLITE_INDEXES), {"name": self.name}))
        # Otherwise a view on the table would make the renaming fail.
        self._run("PRAGMA legacy_alter_table = ON")
        self._run(f"INSERT INTO {new.name} ({names}) SELECT {names} FROM {self.name}")
        self._run(f"DROP TABLE {self.name}")
        self._run(f"ALTER TABLE {new.name} RENAME TO {self.name}")
        self._run("PRAGMA legacy_alter_table = OFF")
        for sql in indexes:
            self._connection.exec_driver_sql(sql)


def _in_utc(instant: datetime) -> str:
    if instant.tzinfo is not None:
        instant = instant.astimezone(UTC).replace(tzinfo=None)
    return instant.isoformat(" ", "microseconds")


# By type: what the declaration must contain, and the condition on each value.
_SQLITE_TYPES = {
    BigInteger: ("INT", "typeof({}) = 'integer'"),
    Text: (_TEXT := "CHAR|CLOB|TEXT", _IS_TEXT := "typeof({}) = 'text'"),
    String: (_TEXT, _IS_TEXT),
    Boolean: ("BOOL|INT", "typeof({0}) = 'integer' AND {0} IN (0, 1)"),
    DateTime: ("TIME|TEXT", _IS_TEXT),
    LargeBinary: ("BLOB", "typeof({}) = 'blob'"),
}
# The constraint that older versions of SQLAlchemy made for a Boolean.
_SQLITE_BOOLEAN_CHECK = r"CHECK \(completed IN \(0, 1\)\)"
_SQLITE_ODD_WORDS = {
    r"\bCHECK\b": "it has a constraint CHECK",
    r"\bCOLLATE\s+(?!BINARY)": "it has a collation of its own",
    r"\bON\s+CONFLICT\b": "it has a clause ON CONFLICT",
}
_SQLITE_TABLE = """
    SELECT sql, CASE
        WHEN type <> 'table' THEN 'a ' || type
        WHEN sql LIKE 'CREATE VIRTUAL%' THEN 'a virtual table'
        WHEN (SELECT wr FROM pragma_table_list(:name) WHERE schema = 'main') THEN 'WITHOUT ROWID'
        ELSE 'table'
    END AS kind
    FROM sqlite_master WHERE lower(name) = :name
"""
_SQLITE_COLUMNS = """
    SELECT name, type, "notnull" OR pk AS not_null, dflt_value AS value,
        CASE WHEN hidden THEN 'is generated' ELSE '' END AS oddity
    FROM pragma_table_xinfo(:name)
"""
_SQLITE_ODDITIES = """
    SELECT 'it has the trigger ' || name FROM sqlite_master
    WHERE type = 'trigger' AND lower(tbl_name) = :name
    UNION ALL SELECT 'its primary key is not id'
    WHERE (SELECT group_concat(name) FROM pragma_table_info(:name) WHERE pk) IS NOT 'id'
    UNION ALL SELECT 'it has the unique index ' || name FROM pragma_index_list(:name) AS i
    WHERE "unique" AND origin <> 'pk' AND name <> 'ux_task_user_id_idempotency_key'
    UNION ALL SELECT 'it refers to the table ' || "table" FROM pragma_foreign_key_list(:name)
    WHERE NOT ("table" = 'user' AND "from" = 'user_id')
    UNION ALL SELECT DISTINCT 'the table ' || m.name || ' refers to it'
    FROM sqlite_master AS m, pragma_foreign_key_list(m.name) AS f
    WHERE m.type = 'table' AND lower(f."table") = :name AND lower(m.name) <> :name
"""
_SQLITE_INDEXES = """
    SELECT sql FROM sqlite_master
    WHERE type = 'index' AND lower(tbl_name) = :name AND sql IS NOT NULL
"""
