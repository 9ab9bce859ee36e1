"""Events of finished jobs for one URL of the operator, signed as in Standard Webhooks.

The address is part of the server's settings. No request names one, so no request makes the server
open a connection.
"""

import base64
import hashlib
import hmac
import json
import logging
import time

import httpx

from magicvideo.errors import UserError
from magicvideo.studio.jobs import Job, JobStore

logger = logging.getLogger(__name__)

_PREFIX = "whsec_"
_SECONDS = 10.0
_MOST_ATTEMPTS = 8
_FIRST_WAIT = 5.0


class Webhook:
    """Sends an event for each finished job, at least once.

    Args:
        url: Where it goes.
        secret: `whsec_` and the key in base64.

    Raises:
        UserError: If the address or the secret cannot be used.
    """

    def __init__(self, url: str, secret: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"The webhook {url!r} is not an http:// or https:// address.")
        try:
            self._key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except ValueError:
            self._key = b""
        if len(self._key) < 16:
            raise UserError("The webhook's secret must be whsec_ and 16 bytes or more in base64.")
        self._url = url

    def send_all(self, store: JobStore) -> None:
        """Send what is due; what is not accepted is sent again, at growing intervals."""
        for job in store.open_notices():
            if self._send(job):
                store.close_notice(job.id)
            elif job.notice_attempts + 1 >= _MOST_ATTEMPTS:
                logger.warning(
                    "The webhook accepted no event of %s; it is not tried again.", job.id
                )
                store.close_notice(job.id)
            else:
                store.postpone_notice(job.id, _FIRST_WAIT * 4**job.notice_attempts)

    def sign(self, event_id: str, timestamp: int, body: bytes) -> str:
        """Return the signature header of an event."""
        signed = f"{event_id}.{timestamp}.".encode() + body
        digest = hmac.new(self._key, signed, hashlib.sha256).digest()
        return f"v1,{base64.b64encode(digest).decode()}"

    def _send(self, job: Job) -> bool:
        event_id, timestamp = f"evt_{job.id.removeprefix('video_')}", int(time.time())
        outcome = "completed" if job.state == "completed" else "failed"
        event = {
            "id": event_id,
            "object": "event",
            "created_at": int(job.finished_at or timestamp),
            "type": f"video.{outcome}",
            "data": {"id": job.id},
        }
        body = json.dumps(event).encode()
        headers = {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self.sign(event_id, timestamp, body),
        }
        try:
            answer = httpx.post(
                self._url,
                content=body,
                headers=headers,
                timeout=_SECONDS,
                follow_redirects=False,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            logger.warning("The webhook does not answer (%s).", error)
            return False
        return answer.is_success
