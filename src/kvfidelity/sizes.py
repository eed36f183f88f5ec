"""Cache sizes as written in a configuration, and their number of tokens for a model."""

from __future__ import annotations

import re

from kvfidelity.errors import UserError

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ACCEPTED_FORMS = (
    "600MB (10^6 bytes), 600MiB (2^20 bytes), 5600tok (tokens) or 0.7win (share of the window)"
)
PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(tok|win|" + "|".join(UNITS) + ")")
#: Larger than any: a terabyte of memory or disk thousandfold, a window thousandfold.
MOST = {"tok": 10**9, "win": 1000} | {unit: 10**15 // factor for unit, factor in UNITS.items()}
#: Most that a share of the memory means on a CPU: a job tells its scheduler how much it needs.
MOST_SHARED_ON_CPU = 2 * 2**30
SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")


def parse_size(text: str) -> tuple[float, str]:
    """ "600MiB" -> (600.0, "MiB").

    Raises:
        UserError: not a size, or one that nothing has; the accepted forms are named.
    """
    match = PATTERN.fullmatch(str(text).strip())
    if not match:
        raise UserError(f"{str(text)[:100]!r} is no size; write {ACCEPTED_FORMS}")
    number, unit = float(match[1]), match[2]
    if number > MOST[unit]:
        raise UserError(f"{str(text)[:100]!r} is too large; it must be at most {MOST[unit]}{unit}")
    return number, unit


def size_in_tokens(text: str, *, token_bytes: int, window: int) -> int:
    """Number of tokens in a cache of this size, rounded down.

    600MiB of Llama-3-8B in bf16 (131,072 bytes a token) is 4,800 tokens, 600MB is 4,577, and the
    "about 5,600" of arXiv 2511.04686 is 700MiB.

    Args:
        token_bytes: keys and values of one token over all layers.
        window: trained window in tokens.

    Raises:
        UserError: not a size, or a size smaller than one token.
    """
    number, unit = parse_size(text)
    if unit == "tok":
        tokens = int(number)
    elif unit == "win":
        tokens = int(number * window)
    else:
        tokens = int(number * UNITS[unit] // token_bytes)
    if tokens < 1:
        raise UserError(f"size {text!r} holds no token ({token_bytes} bytes each); raise it")
    return tokens


def parse_share(text: str) -> float | None:
    """ "50%" -> 0.5; None if it is not a percentage.

    Raises:
        UserError: more than 100%.
    """
    match = SHARE.fullmatch(str(text).strip())
    if match is None:
        return None
    if float(match[1]) > 100:
        raise UserError(f"{str(text)[:100]!r} is more than all; it must be at most 100%")
    return float(match[1]) / 100


def divided(text: str, parts: int) -> str:
    """The part that each of `parts` may have of a size or of a share, written as they are.

    Raises:
        UserError: not a size, or a share of more than 100%.
    """
    if parts == 1:
        return text
    share = parse_share(text)
    if share is not None:
        return f"{100 * share / parts:.6f}%"
    number, unit = parse_size(text)
    return f"{number / parts:.6f}{unit}"


def size_in_bytes(text: str) -> int:
    """Number of bytes of a size that is written in bytes.

    Raises:
        UserError: not a size, or a size that is not in bytes.
    """
    number, unit = parse_size(text)
    if unit not in UNITS:
        raise UserError(f"{text!r} must be in bytes here: {', '.join(UNITS)}")
    return int(number * UNITS[unit])


def most_host_bytes(text: str) -> int:
    """Most bytes of the host's memory that `session.prefix_memory` may mean.

    Raises:
        UserError: neither a share nor a size in bytes.
    """
    return MOST_SHARED_ON_CPU if parse_share(text) is not None else size_in_bytes(text)
