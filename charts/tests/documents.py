"""JSON documents one after the other, as kubectl prints several objects."""

import json


def read(stream):
    text, decoder, at = stream.read(), json.JSONDecoder(), 0
    objects = []
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        objects.extend(value["items"] if value.get("kind") == "List" else [value])
    return objects
