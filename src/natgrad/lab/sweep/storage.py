"""The data base that the workers of a sweep share."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Engine, event, exc
from sqlalchemy.engine import make_url

from natgrad.lab.errors import LabError, UsageError
from natgrad.lab.sweep.plan import HEARTBEAT_S

__all__ = ["default_url", "open_storage", "without_password"]

PATIENCE_S = 60.0  #: for another process to let go of an SQLite file
TRIES = 5
#: what data bases say to one of two that make the tables at the same moment
MADE_BY_ANOTHER = ("exist", "unique", "duplicate", "locked")

#: packages of modules that are named otherwise
DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}


def default_url(folder: Path) -> str:
    """An SQLite file in the results folder."""
    return f"sqlite:///{(folder / 'sweep.db').resolve()}"


def open_storage(url: str, heartbeat: int = HEARTBEAT_S) -> RDBStorage:
    """The storage at an address of SQLAlchemy's, its tables made if they are not there.

    Args:
        url: ``sqlite:///FILE``, ``postgresql://USER:PASSWORD@HOST/NAME``, ``mysql://...``.
        heartbeat: seconds between the signs of life of a running trial.

    Raises:
        UsageError: no such kind of data base, or its driver is not installed.
        LabError: it can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        lite = make_url(url).get_backend_name() == "sqlite"
        return _opened(url, heartbeat, lite)
    except (exc.ArgumentError, exc.NoSuchModuleError) as error:
        raise UsageError(
            f"--storage takes sqlite:///FILE, postgresql://USER@HOST/NAME or the like: {error}"
        ) from error
    except ImportError as error:
        kind = make_url(url).get_backend_name()
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        driver = DRIVERS.get(cause.name or "", cause.name or "the driver")
        raise UsageError(
            f"--storage: the driver for {kind} is not installed ({cause}); pip install {driver}"
        ) from error
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise LabError(f"can't open the storage {without_password(url)}: {reason}") from error


def without_password(url: str) -> str:
    """An address that may be shown."""
    return make_url(url).render_as_string(hide_password=True)


def _opened(url: str, heartbeat: int, lite: bool) -> RDBStorage:
    options: dict[str, Any] = {"connect_args": {"timeout": PATIENCE_S}} if lite else {}
    for left in reversed(range(TRIES)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = RDBStorage(
                    url, options, heartbeat_interval=heartbeat, grace_period=3 * heartbeat
                )
            break
        except (exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
            if not left or not any(sign in str(error).lower() for sign in MADE_BY_ANOTHER):
                raise
            time.sleep(0.5)
    if lite:
        _one_at_a_time(storage.engine)
    return storage


def _one_at_a_time(engine: Engine) -> None:
    """Let a transaction on SQLite hold the file from its first read.

    optuna claims a trial by reading its state and writing another, under ``SELECT ... FOR UPDATE``,
    which SQLite does not have: two workers could claim the same one.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # no transactions of the driver's own

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections from before
