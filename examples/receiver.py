"""A receiver of webhooks with Flask, which accepts only requests that the service has signed.

    pip install flask standardwebhooks
    CALLBACK_SECRET=whsec_... python examples/receiver.py 9000

`GET /api/v1/callback-secret` returns the secret. A webhook can arrive more than once, with the
same webhook-id.
"""

import os
import sys

from flask import Flask, abort, request
from standardwebhooks import Webhook, WebhookVerificationError

app = Flask(__name__)
webhook = Webhook(os.environ["CALLBACK_SECRET"])
seen: set[str] = set()  # a real receiver stores these in its database


@app.post("/")
def receive() -> tuple[str, int]:
    try:
        # The signature covers the exact bytes of the body; serialized JSON can differ.
        task = webhook.verify(request.get_data(), dict(request.headers))
    except WebhookVerificationError:
        abort(400)
    if request.headers["webhook-id"] not in seen:
        seen.add(request.headers["webhook-id"])
        print(task["name"], task["status"], task["output"], flush=True)
    return "", 204


if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]))
