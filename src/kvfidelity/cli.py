"""The end of every script: a user's mistake is one line, not a traceback."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
from collections.abc import Callable

from kvfidelity.errors import OutOfSpaceError, UserError

#: PyTorch has an error class for GPUs only. Its CPU allocator, CUDA's libraries, the loader of
#: shared libraries and the system say these.
MEMORY_MESSAGES = (
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "failed to map segment from shared object",
    "can't start new thread",
)
QUOTED_NUMBER = re.compile(r"\(os error (\d{1,4})\)")
NO_MEMORY = (
    "out of memory (or of address space, see `ulimit -v`): give the job more, or run fewer at "
    "once, and run the same command again; nothing computed so far is lost"
)


def main_guard(function: Callable[[], None]) -> None:
    """Run a script's main function; exit with status 2 and `error: ...` on a UserError.

    A full disk and a folder without write permission count as mistakes too: what was complete
    stays, and a rerun continues from there.
    """
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        found = as_os_error(error)
        message = disk_error(found) if found is not None else None
        if message is None and not says_out_of_memory(error):
            raise
        print(f"error: {message or NO_MEMORY}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        # The last collection, at exit, would look at all that was imported: a second for torch.
        gc.freeze()


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, or address space, ran out."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in MEMORY_MESSAGES)


def as_os_error(error: Exception) -> OSError | None:
    """An error of the system; libraries in Rust, such as safetensors, only quote its number."""
    if isinstance(error, OSError):
        return error
    quoted = QUOTED_NUMBER.search(str(error))
    return OSError(int(quoted[1]), os.strerror(int(quoted[1]))) if quoted else None


def disk_error(error: OSError) -> UserError | None:
    """The one-line form of an error that the owner of the disk can fix; None for other errors."""
    path = error.filename or "the output folder"
    if error.errno == errno.EFBIG:
        return OutOfSpaceError(
            f"{path} would be larger than this process may write: raise the limit (`ulimit -f`) "
            "and run the same command again; nothing computed so far is lost"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpaceError(
            f"no space left on the disk that holds {path}: free some and run the same command "
            "again; nothing computed so far is lost"
        )
    if error.filename and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(
            f"{path} cannot be read or written ({os.strerror(error.errno)}): give yourself access "
            "and run the same command again; nothing computed so far is lost"
        )
    return None
