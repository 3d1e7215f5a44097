"""Protobuf messages of `tether.job` and `tether.lease`, written and read by hand: no generated code, and no protobuf to install."""

import struct

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(number):
    """An unsigned number, seven bits a byte."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One field; nothing where it has its default value. Floats are doubles."""
    if isinstance(value, str):
        value = value.encode()
    if not value:
        return b""
    return present(number, value)


def present(number, value):
    """One field, also where it is empty: for what is optional."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | FIXED64) + struct.pack("<d", value)
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def fields(data):
    """The fields of a message: number and value, bytes for what has a length, in the order they come."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
        elif kind == BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(data):
            raise ValueError("a message that ends too early")
        yield key >> 3, value


def _varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number that does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def last(data):
    """The last value of each field."""
    return dict(fields(data))
