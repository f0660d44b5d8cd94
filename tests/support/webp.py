"""WebP, still and moving."""

import struct
from collections.abc import Iterator, Sequence

PICTURE_CHUNKS = (b"ALPH", b"VP8 ", b"VP8L")
IS_ANIMATED_WITH_ALPHA, REPLACES_FRAME_BEFORE = 0x12, 2
FOREVER = bytes(6)  # a transparent background, and no number of loops


def animated(frames: Sequence[tuple[bytes, int]], width: int, height: int) -> bytes:
    """Still WebP images of one size, each with its milliseconds, as one moving image."""
    size = _uint24(width - 1) + _uint24(height - 1)
    chunks = [
        _chunk(b"VP8X", struct.pack("<I", IS_ANIMATED_WITH_ALPHA) + size),
        _chunk(b"ANIM", FOREVER),
    ]
    for still, milliseconds in frames:
        header = bytes(6) + size + _uint24(milliseconds) + bytes([REPLACES_FRAME_BEFORE])
        chunks.append(_chunk(b"ANMF", header + b"".join(_picture(still))))
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _picture(still: bytes) -> Iterator[bytes]:
    """The chunks with the pixels of a still image."""
    start = 12
    while start < len(still):
        kind, size = struct.unpack_from("<4sI", still, start)
        end = start + 8 + size + size % 2
        if kind in PICTURE_CHUNKS:
            yield still[start:end]
        start = end


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(content)) + content + bytes(len(content) % 2)


def _uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")
