"""How every script ends: a user's mistake is one line, not a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from kvfidelity.errors import OutOfSpaceError, UserError


def main_guard(function: Callable[[], None]) -> None:
    """Run a script's main function; exit with status 2 and `error: ...` on a UserError.

    A full disk counts as one: what was complete stays, and a rerun goes on from there.
    """
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {out_of_space(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def out_of_space(error: OSError) -> OutOfSpaceError:
    """The one-line form of ENOSPC."""
    where = error.filename or "the output folder"
    return OutOfSpaceError(
        f"no space left on the disk that holds {where}: free some and run the same command again; "
        "nothing computed so far is lost"
    )
