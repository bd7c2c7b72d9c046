"""Outermost middleware: errors become responses, and each request one line of the access log and one observation."""

import logging
import time
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneline.serve.api import errors
from tuneline.serve.api.metrics import Metrics
from tuneline.serve.api.record import KEY, Record
from tuneline.serve.deploy.interface import UnknownModelError
from tuneline.serve.engines.interface import EngineFailedError

logger = logging.getLogger("tuneline.serve.access")
errors_logger = logging.getLogger("tuneline.serve")

CLIENT_CLOSED = 499


class ClientClosedError(Exception):
    """The client closed the connection, or does not read its stream; nothing can be sent."""


class Access:
    """Log and count requests, and send the responses of errors."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], retry_after: int, log_prompts: bool
    ) -> None:
        self.app, self.metrics, self.routes = app, metrics, routes
        self.retry_after, self.log_prompts = retry_after, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = scope[KEY] = Record(scope["method"], self._route(scope["path"]))

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        except ClientClosedError:
            record.status = CLIENT_CLOSED
        except Exception as error:
            if record.status:
                raise  # part of the response is sent: the server closes the connection
            await self._send_error(error, record, scope, receive, send_recorded)
        except BaseException:
            record.status = record.status or CLIENT_CLOSED
            raise
        finally:
            self._finish(record)

    def _route(self, path: str) -> str:
        if path in self.routes:
            return path
        return "/v1/models/{id}" if path.startswith("/v1/models/") else "unknown"

    async def _send_error(self, error: Exception, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        api_error = translate(error, self.retry_after)
        record.error = api_error.code
        await api_error.response()(scope, receive, send)

    def _finish(self, record: Record) -> None:
        self.metrics.observe_request(record)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", format_line(record, self.log_prompts))


def translate(error: Exception, retry_after: int) -> errors.ApiError:
    """Return the API error for an exception; the traceback of a defect goes to the log."""
    if isinstance(error, errors.ApiError):
        return error
    if isinstance(error, UnknownModelError):
        return errors.unknown_model(error)
    if isinstance(error, EngineFailedError):
        return errors.engine_failed(error, retry_after)
    errors_logger.error("Request failed.", exc_info=error)
    return errors.internal_error()


def format_line(record: Record, log_prompts: bool) -> str:
    """Return the line of the access log."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"{now} {record.key} {record.method} {record.route} {record.status} {record.version}"
    line += f" in={record.prompt_tokens} out={record.completion_tokens} {record.seconds:.3f}s"
    if record.error is not None:
        line += f" error={record.error}"
    if log_prompts and record.prompts:
        line += f" prompts={orjson.dumps(record.prompts, default=_dump).decode()}"
    return line


def _dump(value: Any) -> Any:
    return value.model_dump(exclude_none=True)
