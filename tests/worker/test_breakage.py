"""A fault in or around a worker fails at most the job that caused it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from kvfidelity.worker.job import job_from
from kvfidelity.worker.protocol import first_message
from kvfidelity.worker.socket_path import socket_folder
from tests.forked_python import NOT_FORKED
from tests.waiting import LIMIT_S, wait_until
from tests.worker.conftest import LIBRARY, Workdir
from tests.worker.test_worker import artifact_digests


def one_socket(workdir: Workdir) -> Path:
    [path] = workdir.runtime.rglob("*.sock")
    return path


def say(workdir: Workdir, content: bytes) -> bytes:
    """Send raw bytes to the worker; what it answers until it closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(one_socket(workdir)))
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(4096)


class TestErrors:
    def test_a_users_mistake_is_one_line_and_the_worker_stays(self, warm: Workdir) -> None:
        worker = warm.worker().pid
        code, stderr = warm.run("bad", parameters={"faults": "none"})
        assert (code, stderr) == (
            2,
            "error: policy fault_policy: unknown parameter 'faults'; did you mean 'fault'?\n",
        )
        code, stderr = warm.run("bad", "--dialogue", "007")
        assert code == 2
        assert stderr.startswith("error: ")
        assert "pool.parquet has 2 dialogues, but no number 007" in stderr
        assert warm.worker().pid == worker
        assert not (warm.folder / "bad").exists()

    def test_a_corrupt_model_is_one_line(self, workdir: Workdir) -> None:
        with (workdir.folder / "model/model.safetensors").open("r+b") as file:
            file.truncate(1000)
        code, stderr = workdir.run("job")
        assert code == 2
        assert stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in stderr

    def test_an_unexpected_error_gives_its_traceback_and_a_fresh_worker(
        self, warm: Workdir
    ) -> None:
        worker = warm.worker().pid
        code, stderr = warm.run("bad", **warm.fault_spec("raise"))
        assert code == 1
        assert stderr.rstrip().endswith("ZeroDivisionError: no such thing")
        assert stderr.count("Traceback") == 1
        assert "fault_policy.py" in stderr
        code, stderr = warm.run("next")
        assert (code, stderr.count("loading")) == (0, 1)
        assert warm.worker().pid != worker

    def test_a_full_disk_is_one_line_and_the_worker_stays(self, warm: Workdir) -> None:
        code, stderr = warm.run("bad", **warm.fault_spec("fill disk", times=1))
        assert code == 2
        assert "error: no space left on the disk that holds results" in stderr
        assert "Traceback" not in stderr
        assert warm.run("next")[1].count("loading") == 0

    def test_out_of_memory_is_a_result_and_the_next_job_succeeds(self, warm: Workdir) -> None:
        assert warm.run("whole")[0] == 0
        code, _ = warm.run("short", **warm.fault_spec("exhaust memory", times=1))
        assert code == 0
        assert warm.run("next")[0] == 0
        assert artifact_digests(warm, "next") == artifact_digests(warm, "whole")

    def test_out_of_memory_outside_a_turn_replaces_the_worker(self, warm: Workdir) -> None:
        code, stderr = warm.run("bad", **warm.fault_spec("exhaust more memory"))
        assert code == 1
        assert "MemoryError: none left" in stderr
        assert warm.run("next")[1].count("loading") == 1

    def test_what_a_worker_writes_is_in_the_log_of_the_job_that_made_it(
        self, warm: Workdir
    ) -> None:
        warm.run("before")
        stderr = warm.run("job", **warm.fault_spec("write", times=1))[1]
        assert stderr.count("a warning from deep inside") == 1
        assert "deep inside" not in warm.run("after")[1]


class TestDeadWorkers:
    def test_a_killed_worker_is_replaced_and_the_result_is_the_same(self, warm: Workdir) -> None:
        warm.let_go()
        warm.run("undisturbed", **warm.fault_spec("hold"))
        for name in ("marker", "marker.go"):
            (warm.folder / name).unlink()
        job = warm.start("job", **warm.fault_spec("hold"))
        wait_until(warm.faults_done)
        os.kill(warm.faults_done()[0], signal.SIGKILL)
        warm.let_go()
        code, stderr = warm.end(job)
        assert code == 0, stderr
        assert stderr.count("the worker died; starting another") == 1
        # The fault's parameters name the marker, the same for both.
        assert artifact_digests(warm, "job") == artifact_digests(warm, "undisturbed")

    def test_a_crash_in_native_code_is_retried_and_its_stack_is_in_the_log(
        self, warm: Workdir
    ) -> None:
        code, stderr = warm.run("job", **warm.fault_spec("crash", times=1))
        assert code == 0
        assert "Segmentation fault" in stderr
        assert "fault_policy.py" in stderr

    def test_a_job_that_kills_each_worker_fails_and_says_so(self, warm: Workdir) -> None:
        code, stderr = warm.run("job", **warm.fault_spec("crash"))
        assert code == 1
        assert len(set(warm.faults_done())) == 3
        assert "the worker died 3 times during this job" in stderr
        assert "--no-worker" in stderr
        assert warm.run("next")[0] == 0

    def test_waiting_jobs_succeed_after_a_crash(self, warm: Workdir) -> None:
        first = warm.start("first", **warm.fault_spec("hold"))
        wait_until(warm.faults_done)
        waiting = [warm.start(f"waiting-{number}") for number in range(2)]
        wait_until(lambda: _queued(warm) >= 2)
        os.kill(warm.faults_done()[0], signal.SIGKILL)
        warm.let_go()
        ends = [warm.end(job) for job in (first, *waiting)]
        stderr = [text for _, text in ends]
        assert [code for code, _ in ends] == [0, 0, 0], stderr
        assert [text.count("the worker died") for text in stderr] == [1, 0, 0]

    def test_a_stale_socket_is_replaced(self, warm: Workdir) -> None:
        warm.worker().kill()
        wait_until(lambda: not warm.workers())
        assert one_socket(warm).is_socket()
        code, stderr = warm.run("next")
        assert (code, stderr.count("loading")) == (0, 1)

    def test_of_two_workers_that_start_at_once_one_serves(self, workdir: Workdir) -> None:
        # As if a client had been killed between starting a worker and reaching it.
        workdir.environment |= NOT_FORKED
        workdir.run("job")
        reply_line = workdir.worker().cmdline()
        workdir.stop()
        wait_until(lambda: not workdir.workers())
        environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
        first, second = (
            subprocess.Popen(reply_line, cwd=workdir.folder, env=environment) for _ in range(2)
        )
        wait_until(lambda: list(workdir.runtime.rglob("*.sock")))
        assert workdir.run("next", "--code-digest", "new")[0] == 0
        wait_until(lambda: len(workdir.workers()) == 1)
        assert {first.wait(LIMIT_S), second.wait(LIMIT_S)} == {0}

    def test_a_worker_that_cannot_start_says_why(self, workdir: Workdir) -> None:
        # Set once the job's own interpreter is up: it meets its worker only.
        job = workdir.job("job")
        code = f"import os, runpy, sys; sys.argv = {job[1:]!r}; os.environ['PYTHONHOME'] = '/none';"
        code += f"runpy.run_path({job[1]!r}, run_name='__main__')"
        process = subprocess.Popen(
            [job[0], "-c", code],
            cwd=workdir.folder,
            env=os.environ | workdir.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        status, stderr = workdir.end(process)
        assert status == 1
        assert "the worker did not start" in stderr
        assert "PYTHONHOME = '/none'" in stderr


class TestDeadClients:
    def test_a_dead_clients_request_is_dropped_at_its_next_turn(self, warm: Workdir) -> None:
        job = warm.start("job", **warm.fault_spec("hold"))
        wait_until(warm.faults_done)
        worker = warm.worker().pid
        job.kill()
        warm.let_go()
        code, stderr = warm.run("next")
        assert (code, stderr.count("loading")) == (0, 0)
        assert warm.worker().pid == worker
        assert not (warm.folder / "job").exists()
        assert len(warm.faults_done()) == 2  # the first eviction ranks twice, for its memory

    def test_a_dead_clients_long_turn_ends_with_its_worker(self, warm: Workdir) -> None:
        job = warm.start("job", **warm.fault_spec("sleep", times=1))
        wait_until(warm.faults_done)
        job.kill()
        wait_until(lambda: not warm.workers())
        assert warm.run("next")[0] == 0

    def test_a_client_that_dies_in_the_queue_is_skipped(self, warm: Workdir) -> None:
        first = warm.start("first", **warm.fault_spec("hold"))
        wait_until(warm.faults_done)
        second = warm.start("second")
        wait_until(lambda: _queued(warm) >= 1)
        second.kill()
        warm.let_go()
        assert warm.end(first)[0] == 0
        assert warm.run("third")[0] == 0
        assert not (warm.folder / "second").exists()

    def test_stop_ends_a_worker_in_the_middle_of_a_turn(self, warm: Workdir) -> None:
        job = warm.start("job", **warm.fault_spec("sleep", times=1))
        wait_until(warm.faults_done)
        job.send_signal(signal.SIGSTOP)
        warm.stop()
        wait_until(lambda: not warm.workers())
        job.kill()


class TestStrangers:
    def test_garbage_on_the_socket_does_not_end_a_worker(self, warm: Workdir) -> None:
        worker = warm.worker().pid
        half, unknown = b'{"do": "stop"', b'{"do": "dance"}\n'
        for content in (b"", b"\xff\xfe\n", b"{}\n", b"[1]\n", unknown, half, b"x" * 9999):
            say(warm, content)
        assert warm.run("next")[0] == 0
        assert warm.worker().pid == worker

    def test_a_client_that_sends_nothing_is_dropped(self, warm: Workdir) -> None:
        worker = warm.worker().pid
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.connect(str(one_socket(warm)))
            assert warm.run("next")[0] == 0
        assert warm.worker().pid == worker

    @pytest.mark.skipif(os.getuid() != 0, reason="needs root to act as another user")
    def test_another_user_is_refused_even_with_access_to_the_socket(self, workdir: Workdir) -> None:
        workdir.run("job")
        path = one_socket(workdir)
        for folder in (workdir.runtime, path.parent, path):
            folder.chmod(0o777)
        ask = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            's.sendall(b\'{"do": "stop"}\\n\'); print(s.recv(100))'
        )
        # The system's interpreter: the other user cannot enter this one's environment.
        command = ["/usr/bin/env", "-i", "/usr/bin/python3", "-c", ask, str(path)]
        done = subprocess.run(command, user=65534, capture_output=True, text=True, check=False)
        assert done.stdout.strip() in ("b''", ""), done
        path.parent.chmod(0o700)
        assert workdir.run("next")[1].count("loading") == 0

    def test_a_folder_that_others_can_enter_is_refused(self, workdir: Workdir) -> None:
        (workdir.runtime / f"kvfidelity-{os.getuid()}").mkdir(mode=0o755)
        code, stderr = workdir.run("job")
        assert code == 2
        assert "is not a folder of yours alone" in stderr
        (workdir.runtime / f"kvfidelity-{os.getuid()}").rmdir()

    def test_a_folder_that_is_a_link_is_refused(self, workdir: Workdir, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        link = workdir.runtime / f"kvfidelity-{os.getuid()}"
        link.symlink_to(tmp_path / "elsewhere")
        code, stderr = workdir.run("job")
        assert code == 2
        assert "is not a folder of yours alone" in stderr
        link.unlink()

    @pytest.mark.parametrize("unusable", ["nobody's", "long" * 30])
    def test_a_runtime_folder_that_is_missing_or_has_too_long_a_path_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unusable: str
    ) -> None:
        (tmp_path / ("long" * 30)).mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / unusable))
        with tempfile.TemporaryDirectory(prefix="kvf-") as short:
            monkeypatch.setattr(tempfile, "tempdir", short)
            assert socket_folder() == Path(short) / f"kvfidelity-{os.getuid()}"


def _queued(workdir: Workdir) -> int:
    """Connections to the worker that it has not taken up yet, and the one that it has."""
    path = str(one_socket(workdir))
    lines = Path("/proc/net/unix").read_text().splitlines()
    # One line is the listening socket; accepted and waiting connections bear its path too.
    return sum(line.endswith(path) for line in lines) - 2


class TestHostileClients:
    """What another process of the same user may send: the worker drops it and serves the next."""

    @pytest.mark.parametrize(
        "content",
        [
            b"[" * 200_000 + b"\n",
            b'{"do":' * 100_000 + b"1" + b"}" * 100_000 + b"\n",
            b'{"do": ' + b"9" * 4301 + b"}\n",
            b"\xff\xfe\n",
            b"null\n",
            b"x" * (5 << 20),
        ],
        ids=["arrays", "objects", "long number", "no UTF-8", "no object", "no end of line"],
    )
    def test_an_odd_message_costs_its_sender_alone(self, warm: Workdir, content: bytes) -> None:
        worker = warm.worker().pid
        with contextlib.suppress(ConnectionError):
            assert say(warm, content) == b""
        assert warm.run("next")[0] == 0
        assert warm.worker().pid == worker


def test_a_message_that_comes_byte_by_byte_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.01):
                ours.sendall(b" ")

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        with theirs, pytest.raises(TimeoutError, match="no whole message"):
            first_message(theirs, 0.3)
    finally:
        over.set()
        sender.join()
        ours.close()


def test_a_long_message_is_not_kept() -> None:
    ours, theirs = socket.socketpair()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                ours.sendall(b"x" * (1 << 20))

    sender = threading.Thread(target=flood)
    sender.start()
    with pytest.raises(ValueError, match="longer than 4 MiB"):
        first_message(theirs, LIMIT_S)
    theirs.close()
    sender.join()
    ours.close()


@pytest.mark.parametrize("job", [5, None, [], {"texts": 1}, {"texts": "a"}, {"odd": "a"}])
def test_what_is_no_job_is_refused(job: object) -> None:
    with pytest.raises(ValueError, match="job"):
        job_from(job)
