"""Bringing a database to the tables of this release, by the migrations shipped with it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from glinthawk.errors import InvalidConfig
from glinthawk.gateway.store.database import Database

_SCRIPTS = Path(__file__).parent / "migrations"


def upgrade_database(database: Database, place: Path, *, only_if_new: bool) -> None:
    """Make the tables, or change those of an older release; all of it or nothing.

    place: the folder that messages name. only_if_new: leave tables of an older release alone,
    for a gateway of that release may be at work on them.

    Raises:
        InvalidConfig: a newer release wrote the database, or an older one and `only_if_new`.
        StoreUnavailable: it cannot be read or written now.
    """
    config = _build_config()
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    with database.read() as connection:
        found = _read_revision(connection)
    if found == newest:
        return
    with database.write() as connection:
        found = _read_revision(connection)
        known = {script.revision for script in scripts.walk_revisions()}
        if found is not None and found not in known:
            raise InvalidConfig(
                f"the store in {place} is of a newer release: its revision is {found}, this "
                f"release knows none after {newest}; run the release that wrote it, or restore "
                "a backup from before"
            )
        if found is not None and found != newest and only_if_new:
            raise InvalidConfig(
                f"the store in {place} is of an older release: its revision is {found}, this "
                f"release needs {newest}; start a gateway of this release on it, which brings "
                "it up to date"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _build_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _read_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
