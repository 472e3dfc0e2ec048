"""Optuna with forked workers: they share a storage that had connected before they were forked.

While they run trials, all backends are ended four times, and the server is away once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna
import side

from sa_railway.testing import TemporaryPostgres

WORKERS = 4
TRIALS = 20  # of each worker
SECONDS = 120.0  # for all trials
AWAY = 1.0  # seconds without a server


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    time.sleep(0.15)  # what a real one is busy with
    trial.set_user_attr("pid", os.getpid())
    return x**2


def work(study: optuna.Study, notes: Path) -> None:
    """Run trials one by one, and note how each ended."""
    with notes.open("a", buffering=1) as file:

        def completed(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            print(json.dumps([trial.number, trial.value]), file=file)

        for _ in range(TRIALS):
            try:
                study.optimize(objective, n_trials=1, callbacks=[completed])
            except Exception as error:  # noqa: BLE001 - whatever reaches the caller is counted
                reason = str(error.__cause__ or error).strip().partition("\n")[0]
                print(json.dumps(f"{type(error).__name__}: {reason}"), file=file)
                time.sleep(0.1)


def disturb(
    server: TemporaryPostgres,
    workers: list[multiprocessing.process.BaseProcess],
    notes: list[Path],
) -> None:
    """End backends and stop the server while the workers work, and wait for them to finish."""
    deadline = time.monotonic() + SECONDS
    while not all(note.stat().st_size for note in notes) and time.monotonic() < deadline:
        time.sleep(0.05)  # until every worker has ended a trial
    for fault in (*[server.terminate_backends] * 4, server.stop):
        workers[0].join(0.5)
        fault()
    time.sleep(AWAY)
    server.start()
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0.1))
        worker.kill()  # two that read from one socket may wait without end
        worker.join()


def judge(report: side.Report, notes: list[str], study: optuna.Study) -> None:
    """Compare what the workers have seen with what is stored."""
    stored = {
        trial.number: trial.value
        for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    }
    ends = [json.loads(line) for line in notes if line.endswith("\n")]
    completed = [end for end in ends if isinstance(end, list)]
    for error in (end for end in ends if isinstance(end, str)):
        report.fail(error)
    if unfinished := report.tried - len(ends):
        report.failures["the trial did not end"] += unfinished
    for number, times in Counter(number for number, _ in completed).items():
        if times > 1:
            report.lost.append(f"trial {number} belongs to {times} workers")
    for number, value in completed:
        if stored.get(number) != value:
            report.lost.append(f"trial {number} was {value}, and is {stored.get(number)}")


def run(plugin: bool) -> side.Report:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    report = side.Report("trials of 4 forked workers; backends ended, server stopped")
    report.tried = WORKERS * TRIALS
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, TemporaryPostgres() as server:
        url = server.url.render_as_string(hide_password=False)
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs=side.engine_arguments(plugin=plugin)
        )
        study = optuna.create_study(storage=storage, study_name="bowl")
        notes = [Path(folder, str(number)) for number in range(WORKERS)]
        for note in notes:
            note.touch()
        workers = [fork.Process(target=work, args=(study, note)) for note in notes]
        for worker in workers:
            worker.start()
        disturb(server, workers, notes)
        lines = [line for note in notes for line in note.read_text().splitlines(keepends=True)]
        judge(report, lines, optuna.load_study(study_name="bowl", storage=url))
    return report


if __name__ == "__main__":
    side.main(run)
