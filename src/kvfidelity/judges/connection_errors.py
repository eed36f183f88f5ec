"""Why no connection to an endpoint comes about: TLS, DNS, IPv6, a proxy, or nothing that listens.

The client says `Connection error.` for all of them; the cause is at the end of its chain of errors.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def connection_remedy(error: BaseException, url: str | None) -> str | None:
    """What is wrong with the connection, and what to do; None if it was made.

    Before a connection there is no request, so nothing was charged.

    Args:
        url: the endpoint's address; None for the client's own.
    """
    chain = list(_causes(error))
    names = {type(link).__name__ for link in chain}
    proxy = _proxy(url)
    if "ProxyError" in names or _status(error) == 407:
        return f"the proxy refuses ({_last(chain)}); correct {proxy or 'the proxy variables'}"
    if not names & {"ConnectError", "ConnectTimeout"}:
        return None
    where = f"the proxy of {proxy}" if proxy else "the endpoint"
    remedy = f"correct {proxy}, or exempt the host with NO_PROXY" if proxy else "correct `base_url`"
    root = chain[-1]
    if "ConnectTimeout" in names:
        return f"{where} does not answer within `timeout_s`, perhaps for a firewall; {remedy}"
    match root:
        case ssl.SSLCertVerificationError():
            return (
                f"its TLS certificate is not accepted ({root.verify_message}); correct `base_url`, "
                "or name the file of your own certificate authority in SSL_CERT_FILE"
            )
        case ssl.SSLError():
            return (
                f"{where} does not speak TLS ({root.reason or root}); write http:// if it is meant "
                "to be without, or correct the port"
            )
        case socket.gaierror():
            return f"the host name of {where} is not known (DNS: {root.strerror}); {remedy}"
        case ConnectionRefusedError():
            return f"nothing listens at {where}; start it, or {remedy}"
        case OSError(errno=number) if number in UNREACHABLE:
            family = " over IPv6" if "[" in (url or "") else ""
            return f"{where} cannot be reached{family} ({root.strerror}); {remedy}"
    return f"no connection to {where} ({_last(chain)}); {remedy}"


def client_fault(error: BaseException) -> str:
    """Why the client could not be set up, which environment variables decide."""
    if isinstance(error, ImportError):
        return (
            "a SOCKS proxy is set (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY), which needs the package "
            "`socksio`; install it, or unset the variable"
        )
    if isinstance(error, OSError):
        return f"SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error.strerror}); correct it"
    return f"its address or a proxy variable cannot be used ({_last([error])}); correct it"


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _last(chain: list[BaseException]) -> str:
    text = " ".join(str(chain[-1]).split())[:200]
    return text or type(chain[-1]).__name__


def _status(error: BaseException) -> int | None:
    found = getattr(error, "status_code", None)
    return found if isinstance(found, int) else None


def _proxy(url: str | None) -> str | None:
    """The environment variable of the proxy that is used for an address; None without one."""
    parts = urlsplit(url or "https://api.openai.com")
    proxies = getproxies()
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    for scheme in (parts.scheme, "all"):
        if scheme in proxies:
            return f"{scheme.upper()}_PROXY"
    return None
