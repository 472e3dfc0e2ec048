"""MLflow's store in SQLite: filled at an old revision, upgraded by ``mlflow db upgrade``, and used.

MLflow makes its engine from a URL and nothing else, so the plugin is named there.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile

import side
import sqlalchemy
from alembic import command
from mlflow.store.db.utils import _get_alembic_config  # no public way leads to an old revision
from mlflow.store.tracking.dbmodels.initial_models import Base
from mlflow.tracking import MlflowClient
from sqlalchemy import text

# the last one before the tables of traces were rebuilt; about half of all revisions come after it
OLD = "867495a8f9d4"
ROWS = """
INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)
    VALUES (1, 'e', 'artifacts', 'active')
INSERT INTO experiment_tags (experiment_id, key, value) VALUES (1, 'k', 'v')
INSERT INTO runs (run_uuid, name, user_id, experiment_id, status, start_time, lifecycle_stage,
    source_type) VALUES ('r', 'run', 'u', 1, 'FINISHED', 1, 'active', 'LOCAL')
INSERT INTO tags (run_uuid, key, value) VALUES ('r', 'k', 'v')
INSERT INTO params (run_uuid, key, value) VALUES ('r', 'k', 'v')
INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES ('r', 'm', 1.5, 1, 0, 0)
INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan)
    VALUES ('r', 'm', 1.5, 1, 0, 0)
INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type,
    dataset_source) VALUES ('d', 1, 'n', 'x', 't', 's')
INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id)
    VALUES ('i', 'DATASET', 'd', 'RUN', 'r')
INSERT INTO input_tags (input_uuid, name, value) VALUES ('i', 'k', 'v')
INSERT INTO registered_models (name) VALUES ('model')
INSERT INTO registered_model_tags (name, key, value) VALUES ('model', 'k', 'v')
INSERT INTO registered_model_aliases (name, alias, version) VALUES ('model', 'best', 1)
INSERT INTO model_versions (name, version, current_stage) VALUES ('model', 1, 'None')
INSERT INTO model_version_tags (name, version, key, value) VALUES ('model', 1, 'k', 'v')
INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, execution_time_ms, status)
    VALUES ('t', 1, 1, 1, 'OK')
INSERT INTO trace_tags (request_id, key, value) VALUES ('t', 'k', 'v')
INSERT INTO trace_request_metadata (request_id, key, value) VALUES ('t', 'k', 'v')
"""


def make(engine: sqlalchemy.Engine, url: str) -> None:
    """Make MLflow's tables as of the revision OLD, with a row in each."""
    Base.metadata.create_all(engine)
    command.upgrade(_get_alembic_config(url), OLD)
    with engine.begin() as connection:
        for statement in ROWS.strip().replace("\n    ", " ").splitlines():
            connection.execute(text(statement))


def count(engine: sqlalchemy.Engine, tables: list[str]) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            for name in tables
        }


def use(report: side.Report, uri: str) -> None:
    """Read the old run and write a new one, through MLflow's client."""
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        old = client.get_run("r").data
        if (old.metrics, old.params) != ({"m": 1.5}, {"k": "v"}):
            report.lost.append(f"the old run has metrics {old.metrics}, params {old.params}")
        new = client.create_run("1").info.run_id
        client.log_metric(new, "m", 2.5)
        if client.get_run(new).data.metrics != {"m": 2.5}:
            report.lost.append("a new run has not its metric")
        if not client.search_model_versions("name = 'model'"):
            report.lost.append("the model has no versions")
    except Exception as error:  # noqa: BLE001 - whatever reaches the caller is counted
        report.fail(error)


def run(plugin: bool) -> side.Report:
    logging.disable()
    report = side.Report(f"db upgrade from {OLD} on SQLite, then a run", tried=2)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/mlflow.db"
        engine = sqlalchemy.create_engine(url)
        make(engine, url)
        tables = [name for name in sqlalchemy.inspect(engine).get_table_names() if name[0] != "_"]
        before = count(engine, tables)
        uri = f"{url}?plugin=railway" if plugin else url
        done = subprocess.run(
            [sys.executable, "-m", "mlflow", "db", "upgrade", uri],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            report.fail(f"db upgrade: {side.last_error(done.stderr)}")
        left = [name for name in sqlalchemy.inspect(engine).get_table_names() if name in before]
        after = count(engine, left)
        report.lost = [
            f"{name} had {rows} rows, and has {after.get(name, 'been dropped')}"
            for name, rows in before.items()
            if name != "alembic_version" and after.get(name, 0) < rows
        ]
        use(report, uri)
        engine.dispose()
    return report


if __name__ == "__main__":
    side.main(run)
