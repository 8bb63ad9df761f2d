"""The migrations make the tables that the code believes in."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event

from glinthawk.errors import InvalidConfig
from glinthawk.gateway.store import revisions
from glinthawk.gateway.store.sql import open_store
from glinthawk.gateway.store.tables import METADATA
from unit.gateway.store.factories import add_file


def read_schema(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
        "AND name <> 'alembic_version'"
    ).fetchall()
    connection.close()
    return {name: " ".join(sql.split()) for name, sql in rows}


def test_migrations_and_tables_are_in_step(tmp_path: Path) -> None:
    open_store(tmp_path / "migrated").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'created.db'}")
    METADATA.create_all(engine)
    engine.dispose()
    migrated = read_schema(tmp_path / "migrated" / "glinthawk.db")
    assert migrated == read_schema(tmp_path / "created.db")
    assert set(METADATA.tables) < set(migrated)


def test_alembic_itself_finds_nothing_to_migrate(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store._database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    store.close()


def test_a_migration_that_breaks_off_leaves_nothing_and_is_done_anew(tmp_path: Path) -> None:
    def break_off(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "CREATE TABLE results" in statement:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", break_off)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path)
    finally:
        event.remove(Engine, "before_cursor_execute", break_off)
    assert read_schema(tmp_path / "glinthawk.db") == {}
    open_store(tmp_path).close()
    assert METADATA.tables.keys() < read_schema(tmp_path / "glinthawk.db").keys()


NEXT_RELEASE = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "0005"


def upgrade():
    op.add_column("files", sa.Column("checksum", sa.Text))
"""


def test_a_store_of_an_older_release_is_migrated_by_a_gateway_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "data")
    file = add_file(store)
    store.close()
    scripts = tmp_path / "migrations"
    shutil.copytree(revisions._SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "m9999_next.py").write_text(NEXT_RELEASE)
    monkeypatch.setattr(revisions, "_SCRIPTS", scripts)

    with pytest.raises(InvalidConfig, match=r"older release.*0005.*9999"):
        open_store(tmp_path / "data", beside_gateway=True)
    assert "checksum" not in read_schema(tmp_path / "data" / "glinthawk.db")["files"]
    store = open_store(tmp_path / "data")
    assert "checksum" in read_schema(tmp_path / "data" / "glinthawk.db")["files"]
    assert store.get_file(file.id) == file
    open_store(tmp_path / "data", beside_gateway=True).close()
    store.close()
    monkeypatch.undo()
    with pytest.raises(InvalidConfig, match=r"newer release.*9999.*0005"):
        open_store(tmp_path / "data")
