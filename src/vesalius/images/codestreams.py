"""The size that a compressed frame announces, read before a codec allocates by it."""

from __future__ import annotations

_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP  "
# Start-of-frame markers of JPEG and JPEG-LS: C0 to CF but for DHT, JPG and DAC, and F7.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 codestream; None where it is of another kind or has no header.

    >>> codestream_size(bytes.fromhex("ffd8 ffc0 0011 08 0040 0080 03") + bytes(9))
    (64, 128)
    """
    if frame.startswith(_JP2_START):
        frame = frame[max(frame.find(_J2K_START), 0) :]
    if frame.startswith(_J2K_START):
        x1, y1, x0, y0 = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
        return max(y1 - y0, 0), max(x1 - x0, 0)
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _START_OF_FRAME:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 2 + max(length, 1) if marker != 0xFF else 1
    return None
