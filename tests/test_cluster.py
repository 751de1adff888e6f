"""Several processes over one PostgreSQL: whoever is asked, wherever a batch runs, it is as if there were but one."""

from __future__ import annotations

import json
import operator
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import requests

from tests.cluster import Cluster, Json
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.patience import PATIENCE, wait_for
from tests.postgres import fresh_database
from tests.uploads import creates

ASYNC = {"Prefer": "respond-async"}
REJECT_ONE = [{"kind": "error", "status": 422, "call": "create", "times": 1}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two web processes that run nothing, and two workers."""
    with Directory() as directory, Cluster(directory, webs=2, workers=2) as cluster:
        yield cluster


@pytest.fixture
def directory(cluster: Cluster) -> Directory:
    """The directory of all of them, empty and without faults."""
    cluster.directory.reset()
    return cluster.directory


def resume(
    cluster: Cluster, batch_id: str, web: int, content: bytes | None = None, wait: int = 60
) -> requests.Response:
    files = {"file": ("results.csv", content, "text/csv")} if content is not None else None
    url = f"{cluster.webs[web].url}/batches/{batch_id}/resume"
    return requests.post(url, files=files, headers={"Prefer": f"wait={wait}"}, timeout=70)


def roll_back(cluster: Cluster, batch_id: str, web: int) -> requests.Response:
    return requests.delete(f"{cluster.webs[web].url}/batches/{batch_id}", timeout=60)


class TestCallers:
    def test_a_caller_waits_for_a_batch_that_runs_elsewhere(self, cluster: Cluster, directory: Directory) -> None:
        answer = cluster.webs[0].upload(csv_of(6))
        assert answer.status_code == 200
        assert_exactly_once(directory, answer.json())
        assert creates(directory) == 6
        assert cluster.batch(answer.json()["batch_id"], web=1) == answer.json()

    def test_all_its_creates_are_in_flight_together(self, cluster: Cluster, directory: Directory) -> None:
        directory.settings(create_seconds=3.0)
        assert cluster.webs[0].upload(csv_of(20)).json()["status"] == "completed"
        calls = directory.calls("create")
        assert len(calls) == 20
        assert max(call["started"] for call in calls) < min(call["ended"] for call in calls)

    def test_any_instance_tells_how_far_it_has_come(self, cluster: Cluster, directory: Directory) -> None:
        directory.settings(create_seconds=5.0)
        started_at = time.monotonic()
        answer = cluster.webs[0].upload(csv_of(6), {"Prefer": "wait=1"})
        assert answer.status_code == 202
        assert time.monotonic() - started_at > 1.0
        batch = cluster.batch(answer.json()["batch_id"], web=1)
        assert (batch["status"], batch["total_hospitals"]) == ("processing", 6)
        assert_exactly_once(directory, cluster.ended(batch["batch_id"], web=1))

    def test_a_stream_from_any_instance_tells_of_every_row_and_of_the_end(
        self, cluster: Cluster, directory: Directory
    ) -> None:
        directory.settings(create_seconds=1.0)
        batch_id = cluster.upload(csv_of(6))
        events = [line.split("\n") for line in cluster_events(cluster, batch_id, web=1)]
        told = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events]
        rows = [data for kind, data in told if kind == "row"]
        assert {row["row"] for row in rows if row["status"] == "created_and_activated"} == set(range(1, 7))
        assert [told[0][0], told[-1][0]] == ["batch", "batch"]
        assert_exactly_once(directory, told[-1][1])

    def test_many_more_callers_than_connections_wait_in_one_process(
        self, cluster: Cluster, directory: Directory
    ) -> None:
        directory.settings(create_seconds=2.0)
        batch_id = cluster.webs[0].upload(csv_of(3), {**ASYNC, "Idempotency-Key": "everybody's"}).json()["batch_id"]

        def wait(_: int) -> requests.Response:
            return cluster.webs[0].upload(csv_of(3), {"Idempotency-Key": "everybody's"})

        with ThreadPoolExecutor(120) as pool:
            answers = list(pool.map(wait, range(120)))
        # Half of the threads may wait.
        assert [answer.status_code for answer in answers].count(200) >= 64
        assert {answer.status_code for answer in answers} <= {200, 202}
        assert {answer.json()["batch_id"] for answer in answers} == {batch_id}
        assert creates(directory) == 3


def cluster_events(cluster: Cluster, batch_id: str, web: int) -> list[str]:
    """The events of a batch's stream until it ends, without comments."""
    with requests.get(f"{cluster.webs[web].url}/batches/{batch_id}/events", stream=True, timeout=PATIENCE) as stream:
        text = b"".join(stream.iter_content(None)).decode()
    return [event for event in text.strip().split("\n\n") if not event.startswith(":")]


class TestResume:
    def test_any_instance_resumes_a_batch_that_failed(self, cluster: Cluster, directory: Directory) -> None:
        directory.faults(REJECT_ONE)
        failed = cluster.webs[0].upload(csv_of(6)).json()
        assert (failed["status"], failed["failed_hospitals"]) == ("failed", 1)
        answer = resume(cluster, failed["batch_id"], web=1)
        assert answer.status_code == 200
        assert_exactly_once(directory, answer.json())
        assert creates(directory) == 6 + 1

    def test_any_instance_takes_the_mended_rows(self, cluster: Cluster, directory: Directory) -> None:
        directory.faults(REJECT_ONE)
        failed = cluster.webs[0].upload(csv_of(6)).json()
        [row] = [row for row in failed["hospitals"] if row["status"] == "failed"]
        results = cluster.webs[1].get(f"/batches/{failed['batch_id']}/results.csv?status=failed").content
        mended = results.replace(row["name"].encode(), b"Mended")
        batch = resume(cluster, failed["batch_id"], 1, mended).json()
        assert_exactly_once(directory, batch)
        assert batch["hospitals"][row["row"] - 1]["name"] == "Mended"

    def test_a_batch_that_runs_elsewhere_is_not_resumed(self, cluster: Cluster, directory: Directory) -> None:
        directory.settings(create_seconds=3.0)
        batch_id = cluster.upload(csv_of(3))
        assert resume(cluster, batch_id, web=1).status_code == 409
        assert_exactly_once(directory, cluster.ended(batch_id))

    def test_of_two_instances_that_resume_at_once_one_does(self, cluster: Cluster, directory: Directory) -> None:
        directory.faults(REJECT_ONE)
        batch_id = cluster.webs[0].upload(csv_of(6)).json()["batch_id"]
        directory.settings(create_seconds=1.0)
        together = threading.Barrier(2)

        def resume_it(web: int) -> int:
            together.wait(PATIENCE)
            return resume(cluster, batch_id, web, wait=0).status_code

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(resume_it, (0, 1))) == [202, 409]
        assert_exactly_once(directory, cluster.ended(batch_id))
        assert creates(directory) == 6 + 1


class TestRollBack:
    def test_any_instance_rolls_a_batch_back(self, cluster: Cluster, directory: Directory) -> None:
        batch = cluster.webs[0].upload(csv_of(6)).json()
        for web in (1, 0):
            answer = roll_back(cluster, batch["batch_id"], web)
            assert (answer.status_code, answer.json()["status"]) == (200, "rolled_back")
        assert directory.hospitals() == []

    def test_a_batch_that_runs_elsewhere_is_removed_as_soon_as_what_is_in_flight_has_ended(
        self, cluster: Cluster, directory: Directory
    ) -> None:
        directory.settings(create_seconds=4.0)
        batch_id = cluster.upload(csv_of(20))
        cluster.worker_of(batch_id)
        answer = roll_back(cluster, batch_id, web=1)
        assert (answer.status_code, answer.json()["status"]) == (200, "rolled_back")
        assert directory.calls("activate") == []
        assert directory.hospitals() == []

    def test_of_many_that_roll_back_at_once_all_are_answered_alike(
        self, cluster: Cluster, directory: Directory
    ) -> None:
        batch_id = cluster.webs[0].upload(csv_of(6)).json()["batch_id"]
        with ThreadPoolExecutor(8) as pool:
            with psycopg.connect(cluster.database_url) as connection:
                # All of them are held up here, so that they meet.
                connection.execute("SELECT * FROM batches WHERE batch_id = %s FOR UPDATE", [batch_id])
                waiting = [pool.submit(roll_back, cluster, batch_id, number % 2) for number in range(8)]
                time.sleep(1)
            answers = [it.result(PATIENCE) for it in waiting]
        assert [(answer.status_code, answer.json().get("status")) for answer in answers] == [(200, "rolled_back")] * 8
        assert directory.hospitals() == []

    @pytest.mark.parametrize("seconds", [0.0, 0.3, 0.5, 0.6, 0.7, 0.9])
    def test_whenever_it_comes_nothing_is_left(self, cluster: Cluster, directory: Directory, seconds: float) -> None:
        directory.settings(create_seconds=0.5)
        batch_id = cluster.upload(csv_of(3))
        time.sleep(seconds)
        answer = roll_back(cluster, batch_id, web=1)
        assert (answer.status_code, answer.json()["status"]) == (200, "rolled_back")
        # One of whom nobody took notice would be found after 15 s of silence only.
        assert answer.json()["processing_time_seconds"] < 12
        assert directory.hospitals() == []


class TestKeys:
    def test_the_same_upload_at_another_instance_answers_for_the_batch_that_runs(
        self, cluster: Cluster, directory: Directory
    ) -> None:
        directory.settings(create_seconds=1.0)
        key = {"Idempotency-Key": "while it runs"}
        first = cluster.webs[0].upload(csv_of(6), {**ASYNC, **key}).json()
        again = cluster.webs[1].upload(csv_of(6), key)
        assert (again.status_code, again.json()["batch_id"]) == (200, first["batch_id"])
        assert_exactly_once(directory, again.json())
        assert cluster.webs[0].upload(csv_of(6), key).json() == again.json()
        assert cluster.webs[1].upload(csv_of(5), key).status_code == 422
        assert creates(directory) == 6

    def test_the_same_upload_at_the_same_moment_is_one_batch(self, cluster: Cluster, directory: Directory) -> None:
        together = threading.Barrier(16)

        def upload(number: int) -> Json:
            together.wait(PATIENCE)
            answer = cluster.webs[number % 2].upload(csv_of(3), {"Idempotency-Key": "at once"})
            assert answer.status_code == 200, answer.text
            batch: Json = answer.json()
            return batch

        with ThreadPoolExecutor(16) as pool:
            batches = list(pool.map(upload, range(16)))
        assert len({batch["batch_id"] for batch in batches}) == 1
        assert_exactly_once(directory, batches[0])
        assert creates(directory) == 3


class TestOddIds:
    @pytest.mark.parametrize("path", ["/batches/a%00b", "/batches/%00/events", "/batches/%F0%9F%8F%A5/results.csv"])
    def test_an_id_with_a_nul_is_not_found(self, cluster: Cluster, path: str) -> None:
        assert cluster.webs[0].get(path).status_code == 404

    def test_a_page_after_such_an_id_is_refused(self, cluster: Cluster) -> None:
        assert cluster.webs[0].get("/batches?after=%00").status_code == 400


class TestTheQueue:
    def test_nothing_piles_up_in_it(self, cluster: Cluster, directory: Directory) -> None:
        for number in range(5):
            cluster.webs[0].upload(csv_of(1, f"File {number}"))
        # The upkeep that is due; two queues of two workers.
        most = (1, 2, 1, 4)
        wait_for(lambda: in_the_queue(cluster), lambda counts: all(map(operator.le, counts, most)))


def in_the_queue(cluster: Cluster) -> tuple[int, ...]:
    """How many jobs, events, periodic jobs and workers its tables hold."""
    with psycopg.connect(cluster.database_url) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM procrastinate_jobs), (SELECT count(*) FROM procrastinate_events),"
            "(SELECT count(*) FROM procrastinate_periodic_defers), (SELECT count(*) FROM procrastinate_workers)"
        ).fetchone()
    assert counts is not None
    return counts


class TestLimits:
    def test_three_workers_together_keep_to_the_limit_and_use_all_of_it(self) -> None:
        with (
            # Its own window is shorter, since what is sent may reach it late.
            Directory(create_seconds=0.5, create_limit="30/2") as directory,
            Cluster(directory, webs=1, workers=3, embedded_workers=1, directory_create_limit="30/5") as cluster,
        ):
            for worker in cluster.workers:
                worker.wait_until_working()
            # The web process runs one as well.
            ids = [cluster.upload(csv_of(15, f"File {number}")) for number in range(4)]
            for batch_id in ids:
                assert_exactly_once(directory, cluster.ended(batch_id))
            calls = directory.calls("create")
            assert [call["status"] for call in calls] == [200] * 60
            # 30 at once, and 30 more when five seconds and the one to spare are over: no third window is needed.
            assert calls[-1]["started"] - calls[0]["started"] < 2 * 6 - 0.5
            assert len({worker for worker in cluster.workers if "taken up" in worker.output}) > 1

    def test_batches_are_counted_over_all_instances(self) -> None:
        with (
            Directory(create_seconds=5.0) as directory,
            Cluster(directory, webs=2, workers=1, max_running_batches=3) as cluster,
        ):
            ids = [cluster.upload(csv_of(1, f"File {number}"), web=number % 2) for number in range(3)]
            for web in cluster.webs:
                refused = web.upload(csv_of(1))
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
            for batch_id in ids:
                assert_exactly_once(directory, cluster.ended(batch_id))
            directory.settings(create_seconds=0.05)
            assert cluster.webs[1].upload(csv_of(1)).status_code == 200

    def test_also_those_of_uploads_that_come_at_the_same_moment(self) -> None:
        with (
            Directory(create_seconds=8.0) as directory,
            Cluster(directory, webs=2, workers=1, max_running_batches=3) as cluster,
        ):
            together = threading.Barrier(16)

            def upload(number: int) -> requests.Response:
                together.wait(PATIENCE)
                return cluster.webs[number % 2].upload(csv_of(1, f"File {number}"), ASYNC)

            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(upload, range(16)))
            assert sorted(answer.status_code for answer in answers) == [202] * 3 + [503] * 13
            for answer in answers:
                if answer.status_code == 202:
                    assert_exactly_once(directory, cluster.ended(answer.json()["batch_id"]))
            assert creates(directory) == 3


class TestAddresses:
    @pytest.mark.parametrize("query", ["sslmode=prefer&sslrootcert=/no/such.crt", "options=-c%20search_path%3Dpublic"])
    def test_store_and_queue_take_from_the_address_what_the_driver_understands(
        self, cluster: Cluster, directory: Directory, query: str
    ) -> None:
        with fresh_database() as url, Cluster(directory, workers=1, database_url=f"{url}?{query}") as other:
            assert_exactly_once(directory, other.ended(other.upload(csv_of(2))))


class TestEmbeddedWorkers:
    def test_a_web_process_runs_batches_itself_those_of_others_too(self, directory: Directory) -> None:
        with Cluster(directory, webs=0, workers=0) as cluster:
            cluster.add_web(embedded_workers=0)
            batch_id = cluster.upload(csv_of(6))
            time.sleep(0.5)
            assert creates(directory) == 0
            cluster.add_web(embedded_workers=2)
            assert_exactly_once(directory, cluster.ended(batch_id))
            assert_exactly_once(directory, cluster.webs[1].upload(csv_of(3)).json())

    def test_it_runs_no_more_at_once_than_it_was_told(self, directory: Directory) -> None:
        directory.settings(create_seconds=3.0)
        with Cluster(directory, webs=1, workers=0, embedded_workers=2) as cluster:
            ids = [cluster.upload(csv_of(1, f"File {number}")) for number in range(3)]
            for batch_id in ids:
                assert_exactly_once(directory, cluster.ended(batch_id))
            one, other, third = directory.calls("create")
            assert other["started"] < one["ended"]
            assert third["started"] >= min(one["ended"], other["ended"])
