"""Whether a model's chat template comes to an end, tried in a process of its own.

A template is a program: Jinja's sandbox bounds what it may touch and the length of a `range`, not
its time and memory. Two nested loops, a text that is doubled or a power of powers would hang or
kill the job that renders it. Here that process alone is ended, before a dialogue is read, and the
model is refused in one line. The limit is on the time of the processor, which no load on the
machine changes; a template cannot wait.

This module is that process's program too.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from kvfidelity.errors import UserError

#: Seconds of the processor to load a tokenizer, and to render a few conversations.
LOADING_S, RENDERING_S = 600, 30
#: Bytes of memory that rendering takes on top.
MEMORY = 2 << 30
#: Turns of the conversations that are rendered, and words of a message.
TURNS, WORDS = (1, 2, 3, 8), (1, 40)
#: Exit status for a template that is refused.
REFUSED = 2
#: What the process says once the tokenizer is loaded.
LOADED = "loaded\n"


def check_template(directory: Path, rendering_s: int = RENDERING_S) -> None:
    """Render conversations with the template of a model's folder, within bounds.

    A template that runs away only for words which these conversations do not hold is not found.

    Args:
        directory: a model's folder. rendering_s: seconds of the processor.

    Raises:
        UserError: the tokenizer or the template is not usable, or rendering does not end.
    """
    # One thread and one arena: each reserves address space, which is what is bounded.
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", __name__, str(directory), str(rendering_s)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    if done.returncode == 0:
        return
    said = done.stdout.decode("utf-8", "replace").removeprefix(LOADED)
    if done.returncode == REFUSED and said.strip():
        raise UserError(said.strip())
    what = "chat template" if done.stdout.startswith(LOADED.encode()) else "tokenizer"
    raise UserError(
        f"the {what} of {directory} {_ending(done, what, rendering_s)}: use another model or "
        "template"
    )


def _ending(done: subprocess.CompletedProcess[bytes], what: str, rendering_s: int) -> str:
    status = done.returncode
    if status == -signal.SIGXCPU:
        seconds = rendering_s if what == "chat template" else LOADING_S
        return f"is not done after {seconds} s (a loop without end?)"
    if status < 0:
        return f"ended its process with {signal.Signals(-status).name} (too much memory?)"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"cannot be tried ({lines[-1][:200] if lines else f'status {status}'})"


def _render(directory: Path, rendering_s: int) -> None:
    from kvfidelity.dialogues.pool import Turn
    from kvfidelity.dialogues.templates import ChatTemplate, MessageError
    from kvfidelity.dialogues.tokenizer import load_tokenizer

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_time(LOADING_S)
    tokenizer = load_tokenizer(directory)
    sys.stdout.write(LOADED)
    sys.stdout.flush()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, used + MEMORY)
    _limit_time(rendering_s)
    template = ChatTemplate(tokenizer)
    for turns in TURNS:
        template.layout(turns)
        for words in WORDS:
            text = " ".join(f"word{number}" for number in range(words))
            try:
                template.render([Turn(f"{text}?", f"{text}.")] * turns)
            except MessageError:  # of these words; a dialogue may have others
                continue


def _limit_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)


def _limit(kind: int, limit: int) -> None:
    """Set a limit, no higher than what the caller's environment allows."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _main() -> None:
    try:
        _render(Path(sys.argv[1]), int(sys.argv[2]))
    except UserError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        os._exit(REFUSED)  # without the end of the interpreter, which may need memory


if __name__ == "__main__":
    _main()
