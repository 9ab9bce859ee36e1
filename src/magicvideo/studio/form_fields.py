"""Request bodies: the fields of a form or a JSON object, and the file among them."""

import json
from dataclasses import dataclass
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
PICTURE, VIDEO = "input_reference", "video"


@dataclass(frozen=True)
class Fields:
    """What a body holds.

    Attributes:
        values: The fields by name.
        file: The uploaded file, or None.
        video_id: The id of a video of the server in place of an uploaded one, or None.
    """

    values: dict[str, Any]
    file: bytes | None = None
    video_id: str | None = None


async def read_fields(request: Request, file_field: str = PICTURE) -> Fields:
    """Return what a form or a JSON object holds.

    Args:
        request: Its body is read.
        file_field: Name of the field that may be a file: `PICTURE` or `VIDEO`.

    Raises:
        ApiError: If the body cannot be read, or names a file anywhere else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json_fields(await request.body(), file_field)
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
        return await _form_fields(form, file_field)
    finally:
        await form.close()


def _json_fields(body: bytes, file_field: str) -> Fields:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="malformed_json") from None
    if not isinstance(fields, dict):
        raise ApiError(422, "The body must be a JSON object.", code="invalid_value")
    reference = fields.pop(file_field, None)
    if reference is None:
        return Fields(fields)
    if file_field == VIDEO and isinstance(reference, dict) and reference.keys() == {"id"}:
        return Fields(fields, video_id=str(reference["id"]))
    raise _no_reference(file_field)


async def _form_fields(form: FormData, file_field: str) -> Fields:
    fields: dict[str, Any] = {}
    file = video_id = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != file_field:
                message = f"The field {name[:80]!r} takes no file."
                raise ApiError(422, message, code="invalid_value", param=name[:80])
            file = await value.read()
        elif file_field == VIDEO and name == f"{VIDEO}[id]":
            video_id = value
        elif name == file_field or name.startswith(f"{file_field}["):
            raise _no_reference(file_field)
        elif name.removesuffix("[]") == "lora":
            fields.setdefault("lora", []).append(value)
        elif name in fields:
            message = f"The field {name[:80]!r} is there twice."
            raise ApiError(422, message, code="invalid_value", param=name[:80])
        else:
            fields[name] = value
    return Fields(fields, file, video_id)


def _no_reference(name: str) -> ApiError:
    form = "a file, or as the id of a video of this server" if name == VIDEO else "a file"
    message = f"Send {name} as {form}; no address and no path is ever opened."
    return ApiError(422, message, code="invalid_value", param=name)


def multipart_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return what the OpenAPI schema says of a body that is a form with a model's fields."""
    schema = model.model_json_schema()
    schema.pop("description", None)
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    own = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
    for name, shape in ((PICTURE, file), (VIDEO, {"anyOf": [file, own]})):
        if name in schema["properties"]:
            schema["properties"][name] = shape
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
