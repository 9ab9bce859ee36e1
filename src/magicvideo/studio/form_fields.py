"""Request bodies: the fields of a form or a JSON object, and the picture among them."""

import json
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from magicvideo.studio.responses import ApiError
from magicvideo.studio.security import BodyError

_MAX_FIELDS = 40
_MAX_FIELD_BYTES = 2_000_000
_PICTURE = "input_reference"


async def read_fields(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Return the fields of a form or a JSON object, and the picture among them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json_fields(await request.body()), None
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        message = "Send the fields as multipart/form-data or as a JSON object."
        raise ApiError(400, message, code="unsupported_content_type")
    try:
        form = await request.form(
            max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except BodyError:
        raise
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", "")
        message = f"The form cannot be read: {reason}"
        raise ApiError(400, message, code="malformed_form") from None
    except (ValueError, UnicodeError):
        raise ApiError(400, "The form cannot be read.", code="malformed_form") from None
    try:
        return await _form_fields(form)
    finally:
        await form.close()


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is no JSON.", code="malformed_json") from None
    if not isinstance(fields, dict):
        raise ApiError(422, "The body must be a JSON object.", code="invalid_value")
    if fields.get(_PICTURE) is not None:
        raise _no_reference()
    fields.pop(_PICTURE, None)
    return fields


async def _form_fields(form: FormData) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    picture = None
    for name, value in form.multi_items():
        if name.startswith(f"{_PICTURE}["):
            raise _no_reference()
        if isinstance(value, UploadFile):
            if name != _PICTURE:
                message = f"The field {name[:80]!r} takes no file."
                raise ApiError(422, message, code="invalid_value", param=name[:80])
            picture = await value.read()
        elif name == _PICTURE:
            raise _no_reference()
        elif name.removesuffix("[]") == "lora":
            fields.setdefault("lora", []).append(value)
        elif name in fields:
            message = f"The field {name[:80]!r} is there twice."
            raise ApiError(422, message, code="invalid_value", param=name[:80])
        else:
            fields[name] = value
    return fields, picture


def _no_reference() -> ApiError:
    message = "Send input_reference as a file; no address and no path is ever opened."
    return ApiError(422, message, code="invalid_value", param=_PICTURE)


def multipart_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return what the OpenAPI schema says of a body that is a form with a model's fields."""
    schema = model.model_json_schema()
    schema.pop("description", None)
    if "input_reference" in schema["properties"]:
        schema["properties"]["input_reference"] = {"type": "string", "format": "binary"}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
