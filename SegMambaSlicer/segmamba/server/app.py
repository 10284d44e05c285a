"""The service: what can be asked of the server, and what it answers. The description of it is at /openapi.json."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from segmamba import __version__
from segmamba.errors import InputError, ModelError, OutputError, SegMambaError
from segmamba.inference.file_to_file import requested_model
from segmamba.inference.outputs import also_paths
from segmamba.io.dicom_results import DICOM_EXTENSIONS
from segmamba.io.labelmap import LABELMAP_EXTENSIONS
from segmamba.models.library import load_models
from segmamba.reporting import DISCLAIMER
from segmamba.request import Options, Request
from segmamba.server.guard import Guard, error_body
from segmamba.server.jobs import OVER, Job, Jobs, Refused, State, Upload
from segmamba.server.settings import ServerSettings
from segmamba.server.uploads import CHECKS

INPUT, LEVELS = "input", "levels"
ENDINGS = (*LABELMAP_EXTENSIONS, *DICOM_EXTENSIONS)
# Without news, a sign of life is sent in this many seconds.
HEARTBEAT = 5.0
Identifier = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="a number of the client's own, 128 bits")]
Name = Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]


class FileDescription(BaseModel):
    """A file that will be sent."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(description=f"one of {', '.join(CHECKS)}")
    size: int = Field(gt=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class JobDescription(BaseModel):
    """What is to be done. The options are those of `segmamba segment`, by their names in JSON."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = Field(None, max_length=100)
    model: str | None = Field(None, max_length=100)
    model_version: str | None = Field(None, max_length=100, description="refuse to run another version")
    options: dict[str, Any] = Field(default_factory=dict)
    output: str = Field(".nrrd", description=f"how the segmentation's name ends, one of {', '.join(ENDINGS)}")
    also: list[str] = Field(default_factory=list, max_length=8, description="of DICOM: further results")
    preview: bool = False
    files: dict[Name, FileDescription] = Field(
        max_length=16, description=f"'{INPUT}', for levels of another segmentation '{LEVELS}', and those of channels"
    )
    channels: dict[str, Name] = Field(
        default_factory=dict, max_length=15, description="for models of several volumes: channels and their files"
    )


def make_app(jobs: Jobs, token: str) -> Guard:
    """Return the service as an ASGI application."""
    settings = jobs.settings
    app = FastAPI(
        title="segmamba",
        version=__version__,
        description=f"Segmentation of CT and MR. {DISCLAIMER}",
        # Their pages load programs from elsewhere.
        docs_url=None,
        redoc_url=None,
        # Checked by the guard; here it is only described.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
    )

    _answer_errors(app)
    _add_jobs(app, jobs)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Say that the server is up, and how many jobs there are in which state. Needs no token."""
        return {"status": "ok", "version": __version__, "jobs": jobs.count()}

    @app.get("/models")
    def models() -> list[dict[str, Any]]:
        """List the models of the server."""
        found = load_models(Path(settings.manifest) if settings.manifest else None).models
        return [{"id": each.id, "version": each.version, "title": each.title, "task": each.task} for each in found]

    return Guard(app, token, settings.upload_bytes)


def _answer_errors(app: FastAPI) -> None:
    """Answer errors in one typed sentence each."""

    @app.exception_handler(Refused)
    async def refused(_request: HttpRequest, error: Refused) -> Response:
        return Response(error_body(error.error), error.status, media_type="application/json")

    @app.exception_handler(SegMambaError)
    async def wrong(_request: HttpRequest, error: SegMambaError) -> Response:
        return Response(error_body(error), 422, media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: HttpRequest, error: RequestValidationError) -> Response:
        # The places of what is wrong, not the values.
        places = {".".join(map(str, each["loc"])) + f" ({each['msg']})" for each in error.errors()[:5]}
        text = f"The description of the job is not valid: correct {', '.join(sorted(places))}."
        return Response(error_body(InputError(text)), 422, media_type="application/json")


def _add_jobs(app: FastAPI, jobs: Jobs) -> None:
    """Add what can be done with a job."""

    @app.put("/jobs/{identifier}")
    def create(identifier: Identifier, description: JobDescription) -> dict[str, Any]:
        """Announce a job, and learn its state. Sent again it is the same job, unless that failed."""
        make_request = request_maker(description, jobs.settings)
        uploads = {name: Upload(each.kind, each.size, each.sha256) for name, each in sorted(description.files.items())}
        return view(jobs, jobs.create(identifier, make_request, uploads))

    @app.put("/jobs/{identifier}/files/{name}", openapi_extra=FILE_BODY)
    async def upload(identifier: Identifier, name: str, request: HttpRequest) -> dict[str, Any]:
        """Send a file of a job; with the last one it begins to wait for a worker."""
        job = jobs.get(identifier)
        if name not in job.uploads:
            raise Refused(404, InputError(f"The job has no file '{name}': announce it with the job."))
        if job.state is State.UPLOADING and name not in job.received:
            await take_file(job, name, request)
            jobs.received(job, name)
        return view(jobs, job)

    @app.get("/jobs/{identifier}")
    def state(identifier: Identifier) -> dict[str, Any]:
        """Return the state of a job."""
        return view(jobs, jobs.get(identifier))

    @app.get("/jobs/{identifier}/events", response_class=StreamingResponse)
    async def events(identifier: Identifier) -> StreamingResponse:
        """Follow a job: server-sent events "state", each with its whole state, until it is over."""
        return StreamingResponse(follow(jobs, jobs.get(identifier)), media_type="text/event-stream")

    @app.get("/jobs/{identifier}/results/{name}", response_class=FileResponse)
    def result(identifier: Identifier, name: str) -> FileResponse:
        """Fetch a file of the result."""
        job = jobs.get(identifier)
        if name not in job.results:
            raise Refused(404, OutputError(f"The job has no result '{name}': look at its state."))
        path = job.folder / "results" / name
        if not path.is_file():
            # Something cleans up the folder for temporary files; the job can be done again.
            jobs.forget(job)
            raise Refused(404, OutputError("The server has lost this result: start again."))
        return FileResponse(path, media_type="application/octet-stream")

    @app.delete("/jobs/{identifier}")
    def forget(identifier: Identifier) -> JSONResponse:
        """Cancel a job, or say that its result was fetched: all that belongs to it is deleted."""
        jobs.forget(jobs.get(identifier))
        return JSONResponse({"state": "forgotten"})


FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def view(jobs: Jobs, job: Job) -> dict[str, Any]:
    """Return what a client may know of a job."""
    error = None if job.error is None else {"error": type(job.error).__name__, "message": str(job.error)}
    missing = [name for name in job.uploads if name not in job.received] if job.state is State.UPLOADING else []
    return {
        "id": job.id,
        "state": job.state.value,
        "ahead": jobs.ahead(job),
        "stage": job.stage,
        "fraction": job.fraction,
        "missing": missing,
        "error": error,
        "report": job.report,
        "results": job.results,
    }


def request_maker(
    description: JobDescription, settings: ServerSettings
) -> Callable[[Path, Mapping[str, Path]], Request]:
    """Return what makes the worker's request of a description, which is checked here.

    Raises
    ------
    SegMambaError
        The description cannot be done: there is no such model, file kind, option, ...
    """
    names = {INPUT, *description.channels.values()}
    if set(description.files) - {LEVELS} != names or LEVELS in names:
        raise InputError(f"The files are not '{INPUT}', '{LEVELS}' and those of the channels: announce these.")
    for each in description.files.values():
        if each.kind not in CHECKS:
            raise InputError(f"There is no kind of file '{each.kind[:20]}': choose from {', '.join(CHECKS)}.")
    if description.output not in ENDINGS:
        raise OutputError(f"There is no output '{description.output[:20]}': choose from {', '.join(ENDINGS)}.")
    own = {"device", "levels_from"} & set(description.options)
    if own:
        raise InputError(f"The option '{own.pop()}' is the server's own: leave it out.")
    unknown = set(description.options) - set(Options.__dataclass_fields__)
    if unknown:
        raise InputError(f"There is no option '{re.sub(r'[^a-z_]', '?', unknown.pop())[:40]}': leave it out.")
    options = Options(**description.options, device=settings.device)
    base = Request(
        "",
        f"segmentation{description.output}",
        description.task,
        description.model,
        manifest=settings.manifest,
        overwrite=True,
        also=tuple(description.also) or None,
        options=options,
    )
    also_paths(base)
    model = requested_model(base)
    if description.model_version not in (None, model.version):
        raise ModelError(
            f"The server has version {model.version} of the model '{model.id}', not {description.model_version}: "
            "install the same version of SegMambaSlicer here and there."
        )

    def make(folder: Path, inputs: Mapping[str, Path]) -> Request:
        results = folder / "results"
        # A worker that died may have left something.
        results.mkdir(exist_ok=True)
        levels = str(inputs[LEVELS]) if LEVELS in inputs else None
        return replace(
            base,
            input=str(inputs[INPUT]),
            output=str(results / base.output),
            preview=str(results / "preview.png") if description.preview else None,
            channels={channel: str(inputs[name]) for channel, name in description.channels.items()} or None,
            options=replace(options, levels_from=levels),
        )

    return make


async def take_file(job: Job, name: str, request: HttpRequest) -> None:
    """Write the body of a request to a job's file; what did not come whole is deleted."""
    upload, path = job.uploads[name], job.path(name)
    if int(request.headers.get("content-length", 0)) != upload.size:
        raise Refused(400, InputError("The file is not as long as was announced: announce and send it again."))
    draft = path.with_name(f"{path.name}.{id(request)}.part")
    digest, taken = hashlib.sha256(), 0
    try:
        with draft.open("xb") as stream:
            async for chunk in request.stream():
                digest.update(chunk)
                stream.write(chunk)
                taken += len(chunk)
                job.changed = time.monotonic()
        if taken != upload.size or digest.hexdigest() != upload.sha256:
            raise Refused(400, InputError("The file did not arrive as it was announced: send it again."))
        # Another connection may have brought it meanwhile.
        if job.state is State.UPLOADING and name not in job.received:
            draft.replace(path)
    except ClientDisconnect as error:
        raise Refused(408, InputError("The file came too slowly, or not whole: send it again.")) from error
    except OSError as error:
        # The job may have been forgotten meanwhile.
        raise Refused(507, OutputError("The server cannot keep the file: send it again later.")) from error
    finally:
        draft.unlink(missing_ok=True)


async def follow(jobs: Jobs, job: Job) -> AsyncIterator[bytes]:
    """Give a job's state at once and at each change, until it is over; a comment now and then where there is none."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def listener() -> None:
        loop.call_soon_threadsafe(changed.set)

    job.listeners.add(listener)
    try:
        while True:
            changed.clear()
            over = job.state in OVER
            yield f"event: state\ndata: {json.dumps(view(jobs, job))}\n\n".encode()
            if over:
                return
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT)
            except TimeoutError:
                yield b": still there\n\n"
    finally:
        job.listeners.discard(listener)
