"""/v1/files: uploads into the store and what is kept there, in bounded memory."""

import asyncio
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glinthawk.gateway.api.accounts import Accounts
from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.http import schemas, schemas_jobs
from glinthawk.gateway.http.errors import JsonAnswer
from glinthawk.gateway.http.forms import FORM_ROOM_BYTES, UploadForm
from glinthawk.gateway.http.guard import Caller, Guard
from glinthawk.gateway.http.paging import After, build_page
from glinthawk.gateway.http.reading import check_media_type, iterate_body, wait_for_hang_up
from glinthawk.gateway.http.store_calls import StoreCalls
from glinthawk.gateway.http.uploads import keep_pieces
from glinthawk.gateway.store.records import FilePurpose, FileRecord
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.http")

_MAX_PAGE = 10_000
_PIECE_BYTES = 256 << 10
_FORM = "multipart/form-data"
_OCTETS = "application/octet-stream"

_FileId = Annotated[str, Path(description="Of the file.")]
_Limit = Annotated[int, Query(ge=1, le=_MAX_PAGE, description="Most files of the page.")]
_Order = Annotated[
    Literal["asc", "desc"], Query(description="Oldest first (`asc`) or newest (`desc`).")
]
_Purpose = Annotated[
    str | None, Query(description="Only files for this: `batch` or `batch_output`.")
]


def build_file_routes(
    services: ApiServices, guard: Guard, accounts: Accounts, calls: StoreCalls
) -> APIRouter:
    """Return the routes of files."""
    router = APIRouter(tags=["Files"], responses=schemas.describe_errors(401, 500, 503))
    known_caller = Annotated[Caller, Depends(guard)]
    store = services.store

    @router.post(
        "/v1/files",
        summary="Upload a file",
        response_model=schemas_jobs.FileObject,
        responses=schemas.describe_errors(400, 413, 415, 429),
        openapi_extra=schemas.describe_body(schemas_jobs.FileUpload, _FORM),
    )
    async def upload_file(request: Request, caller: known_caller) -> JsonAnswer:
        """Keep a file, which may be larger than any memory. It is there once the answer is."""
        with accounts.open(caller.name, 0):
            return JsonAnswer(build_file(await _upload(request, caller, services)))

    @router.get(
        "/v1/files",
        summary="List files",
        response_model=schemas_jobs.FileList,
        responses=schemas.describe_errors(400, 404),
    )
    async def list_files(
        _: known_caller,
        after: After = None,
        limit: _Limit = _MAX_PAGE,
        order: _Order = "desc",
        purpose: _Purpose = None,
    ) -> JsonAnswer:
        """Return a page of all files, whoever uploaded them."""
        records = await calls.read(_list, services, after, limit + 1, order, purpose)
        return JsonAnswer(build_page(records, limit, build_file))

    @router.get(
        "/v1/files/{file_id}",
        summary="Get a file",
        response_model=schemas_jobs.FileObject,
        responses=schemas.describe_errors(404),
    )
    async def retrieve_file(_: known_caller, file_id: _FileId) -> JsonAnswer:
        """Return what is known of a file."""
        return JsonAnswer(build_file(await calls.read(store.get_file, file_id)))

    @router.get(
        "/v1/files/{file_id}/content",
        summary="Get a file's content",
        response_class=Response,
        responses={
            200: {
                "description": "The file's bytes.",
                "content": {_OCTETS: {"schema": {"type": "string"}}},
            },
            **schemas.describe_errors(404),
        },
    )
    async def retrieve_content(_: known_caller, file_id: _FileId) -> Response:
        """Return the bytes of a file."""
        file = await calls.read(store.get_file, file_id)
        opening = await calls.read(store.open_file, file_id)
        return FileContent(opening, file.num_bytes, calls)

    @router.delete(
        "/v1/files/{file_id}",
        summary="Delete a file",
        response_model=schemas_jobs.FileDeleted,
        responses=schemas.describe_errors(400, 404),
    )
    async def delete_file(_: known_caller, file_id: _FileId) -> JsonAnswer:
        """Delete a file for good. The input of a batch that is not over is refused, with a 400."""
        await calls.write(store.delete_file, file_id)
        log.info("file_deleted", file=file_id)
        return JsonAnswer({"id": file_id, "object": "file", "deleted": True})

    return router


def build_file(file: FileRecord) -> dict[str, Any]:
    """Return OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": str(file.purpose),
        "status": "processed",
        "status_details": None,
        "expires_at": None,
    }


class FileContent(Response):
    """A file's bytes, read piece by piece as the client takes them."""

    media_type = _OCTETS

    def __init__(
        self, opening: AbstractContextManager[BinaryIO], num_bytes: int, calls: StoreCalls
    ) -> None:
        super().__init__()
        self._opening = opening
        self._calls = calls
        self.headers["content-length"] = str(num_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; its end is the end of the answer."""
        file = await self._calls.read(self._opening.__enter__)
        hung_up = asyncio.create_task(wait_for_hang_up(receive))
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            while piece := await self._calls.read(file.read, _PIECE_BYTES):
                if hung_up.done():
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            hung_up.cancel()
            self._opening.__exit__(None, None, None)


async def _upload(request: Request, caller: Caller, services: ApiServices) -> FileRecord:
    check_media_type(request, _FORM)
    max_bytes = services.limits.max_file_bytes
    form = UploadForm(
        request.headers["content-type"],
        iterate_body(request, max_bytes + FORM_ROOM_BYTES, "the form"),
        max_file_bytes=max_bytes,
    )
    filename = await form.find_file()
    keep = partial(
        services.store.add_file, purpose=FilePurpose.BATCH, filename=filename, owner=caller.name
    )
    file = await keep_pieces(form.read, keep)
    log.info("file_kept", file=file.id, num_bytes=file.num_bytes, owner=file.owner)
    return file


def _list(
    services: ApiServices, after: str | None, limit: int, order: str, purpose: str | None
) -> list[FileRecord]:
    """Return files; of a purpose that no file here can have, none."""
    if purpose is not None and purpose not in tuple(FilePurpose):
        return []
    found = services.store.list_files(
        limit=limit,
        after=after,
        purpose=None if purpose is None else FilePurpose(purpose),
        newest_first=order == "desc",
    )
    return list(found)
