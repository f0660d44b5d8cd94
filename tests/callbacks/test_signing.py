"""Signatures as Standard Webhooks 1.0 defines them."""

import base64
import json
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from taskservice.webhooks.signing import new_secret, sign

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def test_signature_is_the_fixed_vector_of_the_standard_libraries() -> None:
    headers = sign([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY)

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_standard_library_verifies_what_we_sign_and_no_changed_byte() -> None:
    secret = new_secret()
    body = json.dumps({"name": "Zürich \u2028 🎉"}, ensure_ascii=False).encode()

    headers = sign([secret], "0193", int(time.time()), body)

    assert Webhook(secret).verify(body, headers) == {"name": "Zürich \u2028 🎉"}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.replace(b"r", b"s", 1), headers)


def test_every_secret_signs_newest_first_and_each_receiver_verifies() -> None:
    new, old = new_secret(), new_secret()
    now = int(time.time())

    headers = sign([new, old], "0193", now, BODY)

    alone = [sign([secret], "0193", now, BODY)["webhook-signature"] for secret in (new, old)]
    assert headers["webhook-signature"] == " ".join(alone)
    for secret in (new, old):
        Webhook(secret).verify(BODY, headers)


def test_body_is_signed_as_bytes_whatever_they_are() -> None:
    headers = sign([SECRET], "0193", 1, b"\xff\x00")

    assert headers["webhook-signature"] == "v1,aQJEwDlBYchXK4Uw/krn9QwYrJx6T6Sax0/F/JSEIZQ="


def test_new_secrets_are_long_enough_and_differ() -> None:
    first, second = new_secret(), new_secret()

    assert first != second
    assert first.startswith("whsec_")
    assert 24 <= len(base64.b64decode(first.removeprefix("whsec_"), validate=True)) <= 64


@pytest.mark.parametrize("secrets", [[], ["whsec_"], ["whsec_???"], [SECRET + "!"], [SECRET, ""]])
def test_invalid_secret_does_not_sign(secrets: list[str]) -> None:
    with pytest.raises(ValueError, match=r"secret|base64"):
        sign(secrets, "0193", 1, BODY)


def test_id_with_a_full_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="full stop"):
        sign([SECRET], "0193.1", 1, BODY)
