"""A proxy before Redis that cuts, delays or alters."""

import asyncio
from contextlib import asynccontextmanager

from tests.conftest import unused_port


async def written(data, writer):
    writer.write(data)


async def passed(reader, writer, write=written):
    while data := await reader.read(65_536):
        await write(data, writer)


class Proxy:
    """Passes bytes on to Redis, and those that come back by `answer`."""

    answer = staticmethod(written)

    def __init__(self, port):
        self.target = port
        self.port = unused_port()
        self.opened = 0

    async def serve(self, reader, writer):
        self.opened += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        tasks = [
            asyncio.create_task(passed(reader, back)),
            asyncio.create_task(passed(there, writer, self.answer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            back.transport.abort()
            writer.transport.abort()

    @asynccontextmanager
    async def running(self, secure=None):
        server = await asyncio.start_server(
            self.serve, "127.0.0.1", self.port, ssl=secure
        )
        try:
            yield f"redis{'s' if secure else ''}://127.0.0.1:{self.port}"
        finally:
            server.close()
            await asyncio.sleep(0.01)
