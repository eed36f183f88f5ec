"""Which runs a worker computes before their jobs ask for them: those that clients name as the next
of the workflow, while there is room for their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from kvfidelity.bounded_json import parse_json
from kvfidelity.worker.requests import log_dropped_client
from kvfidelity.worker.runs import Client, Run, RunContent

#: Runs computed ahead and not asked for yet: at most this many batches of them, and these bytes.
#: Meanwhile all jobs that run at once may wait for another worker of the same GPU: with 4 batches a
#: worker of three was idle for 10 s of its first 60.
BATCHES_AHEAD, BYTES_AHEAD = 8, 512 * 2**20


class AheadPlan:
    """The runs that are to be computed ahead, in order, and what is known of those before them.

    One client at a time is asked for runs. It is not thread-safe.

    Args:
        batch_size: runs that are computed together.
    """

    def __init__(self, batch_size: int) -> None:
        #: Most runs that are computed ahead and not asked for.
        self.most = BATCHES_AHEAD * batch_size
        # Early enough that a batch follows another without waiting for clients.
        self._few = self.most - batch_size
        self._planned: deque[RunContent] = deque()
        # Hashes of the content of runs that have ended, whose jobs are answered or to be asked.
        self._past: set[int] = set()
        #: The client whose answer is on its way.
        self.asked: Client | None = None
        # Whether the last answer was the rest: naming it takes a client as long as its job.
        self._complete = False
        self._stopped = False

    def __bool__(self) -> bool:
        return bool(self._planned)

    def stop(self) -> None:
        """Compute nothing ahead any more."""
        self._stopped = True
        self._planned.clear()

    def postpone(self) -> None:
        """Forget what is planned; a client may be asked again."""
        self._planned.clear()

    def reopen(self) -> None:
        """A run was requested that no answer had named: there may be another plan."""
        self._complete = False

    def ask(self, client: Client, ahead: int) -> None:
        """Ask a client which runs follow, if that is of use.

        Args:
            ahead: runs that are computed ahead and not asked for.
        """
        few = len(self._planned) + ahead <= self._few
        wanted = not self._stopped and self.asked is None and not self._complete
        if wanted and client.plans and few:
            self.asked = client
            client.send({"event": "which_next", "limit": self.most})

    def take(self, client: Client, known: Iterable[Run]) -> None:
        """Take the answer in a client's inbox; one that cannot be read costs it its connection.

        Args:
            known: runs of the worker.
        """
        text, client.inbox, self.asked = client.inbox, b"", None
        try:
            message = parse_json(text)
            entries = [
                (entry["spec"], entry["pool"], entry["dialogue"]) for entry in message["next"]
            ]
            self._complete = not message["more"]
            if not all(isinstance(value, str) for entry in entries for value in entry):
                raise TypeError("a planned run is an object of texts")
        except (ValueError, KeyError, TypeError) as error:
            log_dropped_client(error)
            client.gone = True
            return
        there = {run.content for run in known} | set(self._planned)
        for entry in entries if not self._stopped else ():
            try:
                content = RunContent.of(*entry)
            except (OSError, ValueError):
                continue
            # A plan is as old as its client's look at the artifacts: a run may have ended since.
            if content not in there and hash(content) not in self._past:
                self._planned.append(content)
                there.add(content)

    def note_ended(self, content: RunContent) -> None:
        """A run has ended and its client is answered: it is not computed ahead again."""
        self._past.add(hash(content))

    def due(self, runs: Sequence[Run]) -> Iterator[RunContent]:
        """The planned runs to start, while there is room for their results.

        Args:
            runs: of the worker; what is yielded may be added to them before the next.
        """
        while (
            self._planned
            and sum(run.client is None for run in runs) < self.most
            and sum(run.nbytes for run in runs) < BYTES_AHEAD
        ):
            content = self._planned.popleft()
            if hash(content) not in self._past and all(run.content != content for run in runs):
                yield content
