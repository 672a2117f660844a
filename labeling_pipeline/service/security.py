"""Who may use the service; decided before the body of a request is read."""

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeling_pipeline.service.config import ServiceConfig, is_loopback
from labeling_pipeline.service.problems import ProblemDetails, problem_response

OPEN_PATHS = ("/", "/docs", "/openapi.json")
"""Pages that hold nothing but what this package publishes anyway; no key is needed for them."""

DOCS_FILES = "/docs-files"
"""Where scripts and styles of ``/docs`` lie."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}


class Guard:
    """Lets in who may come in.

    With a key, every request must carry it. Without one the service is bound to this machine, and
    then it must be called by a name of this machine: a web page that makes its own name point here
    gets no answer.
    """

    def __init__(self, app: ASGIApp, config: ServiceConfig) -> None:
        self._app = app
        self._key = config.api_key
        self._is_local = config.is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem = self._why_not(scope)
        if problem is None:
            await self._app(scope, receive, send_safely)
            return
        challenge = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else None
        await problem_response(problem, challenge)(scope, receive, send_safely)

    def _why_not(self, scope: Scope) -> ProblemDetails | None:
        headers = Headers(scope=scope)
        path = scope["path"]
        if self._key is None:
            host = headers.get("host", "")
            if self._is_local and not is_loopback(_without_port(host)):
                return ProblemDetails.of(
                    421, "this service is for its own machine: call it by localhost or 127.0.0.1"
                )
            return None
        if path in OPEN_PATHS or path.startswith(f"{DOCS_FILES}/"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        expected = self._key.get_secret_value().encode()
        matches = secrets.compare_digest(given.strip().encode(), expected)
        if matches and scheme.lower() == "bearer":
            return None
        return ProblemDetails.of(
            401, "expected the header `Authorization: Bearer KEY` with the API key"
        )


def _without_port(host: str) -> str:
    """The name in a Host header; an IPv6 address stands in brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
