"""Values for the examples in the OpenAPI document."""

USER = "01a20e63-9218-7bda-b91d-7397fc8ca845"
TASK = "01a20e63-9249-713c-aada-f8fd1cd47589"
KEY = "01a20e63-921a-7c04-8f6e-52a1d0b7c3e9"
DELIVERY = "01a20e63-92c4-7f10-b3a5-9e1d6c2f4b80"
QUESTION = "01a20e63-9310-7d52-a1c7-3f0b9e8d6a42"
HOOK = "01a20e63-9340-7e21-8c5d-6b2f4a9d1c70"
LINK = "01a20e63-9371-7b46-9a0e-1c8d5f7e2b93"
REQUEST = "5d0f9a1c7be34e62b1a40c6f5e2d8a77"
TIME = "2026-11-24T13:36:00.123Z"
LATER = "2026-11-24T13:36:02.456Z"
INPUT_SCHEMA = {
    "type": "object",
    "properties": {"mailbox": {"type": "string"}},
    "required": ["mailbox"],
}
