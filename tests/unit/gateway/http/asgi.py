"""Calls of an application without a socket."""

import asyncio

import httpx
from fastapi import FastAPI


def call(app: FastAPI, method: str, path: str) -> httpx.Response:
    """Return the answer of `app`."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(send())
