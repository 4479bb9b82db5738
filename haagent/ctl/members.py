"""Asking members over their REST API: basic auth, TLS, and a deadline on every request.

Theory. A request ends in one of three ways: the member answered (`Reply`), it was never reached
(`NotReached`: nothing can have happened, somebody else may be asked), or the answer was lost (`Lost`: it may
have been carried out, so it must not be repeated elsewhere). Redirects and retries are off: each would
hide which of the three it was.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from dcs.api import boottime
from haagent.ctl.config import RestOptions
from haagent.ctl.errors import CtlError
from haagent.useragent import user_agent

if TYPE_CHECKING:
    import urllib3

T = TypeVar("T")
R = TypeVar("R")

#: Time to reach a member; more than a lost SYN and its first repetition.
CONNECT_TIMEOUT_S = 3.0
#: Longest answer read: `/cluster` of hundreds of members is far below.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_SCHEMES = ("http", "https")
#: Members asked at the same time.
PARALLEL_REQUESTS = 16


@dataclass(frozen=True)
class Reply:
    """The member answered."""

    status: int
    text: str

    def json_object(self) -> dict[str, Any] | None:
        """The body as a JSON object, None when it is something else."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class NotReached:
    """No connection: the request was not sent."""

    cause: str


@dataclass(frozen=True)
class Lost:
    """The request was sent, the answer did not arrive."""

    cause: str


Outcome = Reply | NotReached | Lost


class MemberClient:
    """Talks to members by their `api_url`. Thread safe."""

    def __init__(self, options: RestOptions) -> None:
        self._options = options
        self._headers = _headers(options)
        self._made: urllib3.PoolManager | None = None

    def request(
        self, method: str, api_url: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> Outcome:
        """One request to `path` of the member; ends within about `timeout_s` seconds."""
        import urllib3
        from urllib3 import exceptions as fault

        url = _address(api_url, path)
        if url is None:
            return NotReached("its api_url is no http address")
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s)
        deadline = boottime() + timeout_s
        try:
            answer = self._pool().request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            return Reply(answer.status, _read(answer, deadline))
        except (fault.NewConnectionError, fault.ConnectTimeoutError, fault.NameResolutionError) as error:
            return NotReached(_brief(error))
        except (fault.SSLError, fault.LocationParseError, fault.URLSchemeUnknown) as error:
            return NotReached(_brief(error))
        except (fault.HTTPError, OSError) as error:
            return Lost(_brief(error))

    def _pool(self) -> urllib3.PoolManager:
        if self._made is None:
            import urllib3

            # urllib3 compares the host name itself where the context is told not to.
            host: dict[str, Any] = {"assert_hostname": False} if self._options.insecure else {}
            tls = _tls(self._options)
            self._made = urllib3.PoolManager(maxsize=PARALLEL_REQUESTS, ssl_context=tls, **host)
        return self._made


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Results of `work` over `items`, in their order."""
    if not items:
        return []
    with ThreadPoolExecutor(min(PARALLEL_REQUESTS, len(items))) as pool:
        return list(pool.map(work, items))


def _address(api_url: str, path: str) -> str | None:
    """`path` on the server of `api_url` (contract 8.2), None when that is no address."""
    try:
        parts = urlsplit(api_url)
    except ValueError:
        return None
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")) if parts.scheme in _SCHEMES else None


def _headers(options: RestOptions) -> dict[str, str]:
    headers = {"User-Agent": user_agent()}
    if options.username is not None:
        login = f"{options.username}:{options.password or ''}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    return headers


def _tls(options: RestOptions) -> ssl.SSLContext:
    """Verification as contract 4.1: `insecure` drops it, with a client certificate only the host name."""
    try:
        context = ssl.create_default_context(cafile=options.cacert)
        if options.certfile:
            context.load_cert_chain(options.certfile, options.keyfile, options.keyfile_password or "")
    except OSError as error:  # ssl.SSLError is one
        raise CtlError(f"cannot load the certificates of section ctl: {error}") from None
    if options.insecure:
        context.check_hostname = False
        if not options.certfile:
            context.verify_mode = ssl.CERT_NONE
    return context


def _read(answer: Any, deadline: float) -> str:
    chunks: list[bytes] = []
    size = 0
    for chunk in answer.stream(65536):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise OSError("the answer is too long")
        if boottime() > deadline:
            raise OSError("the answer took too long")
    answer.release_conn()
    return b"".join(chunks).decode("utf-8", "replace")


def _brief(error: Exception) -> str:
    """Cause in one line, without the object addresses urllib3 puts in front."""
    reason = getattr(error, "reason", None) or error
    return str(reason).rsplit(">: ", 1)[-1].rsplit("): ", 1)[-1].splitlines()[0]
