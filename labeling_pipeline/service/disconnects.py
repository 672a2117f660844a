"""Nobody works for a client that has gone."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class StopWhenGone:
    """Cancels the answer to a request whose client hangs up.

    The end of the connection is looked for once the whole request has arrived; before that the
    parser of the request meets it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = asyncio.Event()

        async def receive_and_tell() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                arrived.set()
            return message

        async def watch() -> None:
            await arrived.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        answer = asyncio.ensure_future(self._app(scope, receive_and_tell, send))
        gone = asyncio.create_task(watch())
        try:
            await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                await asyncio.wait([answer])
            if not answer.cancelled():
                answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.wait([answer, gone])
