import importlib.util
from pathlib import Path

import pytest

from peira.serving.database import Database, open_database

HELPER = Path(__file__).parents[2] / "benchmarks" / "throwaway_postgresql.py"


@pytest.fixture(scope="session")
def postgresql_server():
    """URL of a PostgreSQL server for the session, with one empty database."""
    spec = importlib.util.spec_from_file_location("throwaway_postgresql", HELPER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.programs() is None:
        pytest.skip("PostgreSQL's programs are not installed")
    with module.postgresql() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server):
    """URL under which tables are new: a PostgreSQL schema of its own, which is faster made than a database."""
    import psycopg
    from ulid import ULID

    name = f"test_{ULID()}".lower()
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{postgresql_server}?options=-csearch_path%3D{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """None for SQLite, or the URL of an empty PostgreSQL database."""
    return request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None


@pytest.fixture
def database(url, tmp_path) -> Database:
    opened = open_database(url, tmp_path)
    yield opened
    opened.close()
