"""Random damage to files and texts, reproducible from the generator that is handed in."""

import json
from random import Random
from typing import Any

# JSON that json.dumps would not write; a string of this form in a tree is replaced by the text at that index.
RAW = [
    "NaN",
    "-Infinity",
    "-0",
    "1e999",
    "2.0",
    "9" * 30,
    "9" * 5000,
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\ud83d\\ude00"',
    "[" * 50 + "]" * 50,
    "[" * 400 + "]" * 400,
    '{"a":' * 985 + "1" + "}" * 985,
    "[" * 100_000,
    '"a":1,"a":2',
    "\ufeff{}",
    "'a'",
]
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 0.5]
TEXTS = [
    "", "a", "F32", "BF16", "F64", "U8", "F4", "float32", "bfloat16", "int8", "..", "../model.safetensors", "/etc/passwd",
    "/dev/zero", "a\0b.safetensors", "a\nb.safetensors", "\\\\server\\x.safetensors", "x" * 300 + ".safetensors", "x" * 5000,
    "model.safetensors", ".safetensors", "..safetensors", "__metadata__", "lm_head.weight", "model.norm.weight", "\u202e", "😀",
    "model.layers." + "9" * 5000 + ".mlp", "sparse-zstd", "dense", "a+b", "$(id)", "{{ x }}", "%s%n",
]  # fmt: skip
SAME_SIZE = [["F32", "I32", "U32"], ["BF16", "F16", "I16"], ["U8", "BOOL", "F8_E5M2", "I8"]]
BYTES = [
    b"\0", b"\xff", b"\x80", b"\xed\xa0\x80", b"\xc0\xaf", b'"', b"{", b"}", b"[",
    b",", b"\\u", b" ", b"\n", b"-", b"e9", b"\xef\xbb\xbf",
]  # fmt: skip
SYMBOLS = [
    "+", "@", ":", "=", "~", ",", "[", "]", "-", "/", "(",
    ")", "*", "{9999999999}", "٣", "9" * 5000, "1e400", " ", "\0", "\udc80", "e", ".",
]  # fmt: skip


def damage_bytes(rng: Random, content: bytes) -> bytes:
    """One to four small changes: flipped bits, strange bytes put in or over, pieces cut out, moved, or doubled."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        # Most of what can go wrong is at the beginning.
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
        length = rng.choice([1, 1, 2, 8, 100])
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:at] = rng.choice(BYTES)
        elif kind == 2:
            data[at : at + 1] = rng.choice(BYTES)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data += rng.randbytes(length)
    return bytes(data)


def damage_json(rng: Random, content: bytes) -> bytes:
    """The JSON document with one to three changes of its tree; the rest stays valid."""
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        tree = _damage_tree(rng, tree)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    for index, raw in enumerate(RAW):
        text = text.replace(f'"RAW{index}"', raw).replace(f'"RAWKEY{index}": 0', raw)
    return text.encode("utf-8", "surrogatepass")


def damage_safetensors(rng: Random, content: bytes) -> bytes:
    """A safetensors file with its header's tree changed, its length changed, or its bytes."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = rng.random()
    if kind < 0.55:
        header = damage_json(rng, header)
        if rng.random() < 0.2:
            header = rng.choice([b" ", b"\n"]) * rng.randrange(9) + header + b" " * rng.randrange(9)
        return len(header).to_bytes(8, "little") + header + data
    if kind < 0.7:
        header = _rewrite_header(rng, json.loads(header))
        return len(header).to_bytes(8, "little") + header + data
    if kind < 0.75:
        claims = [0, 1, length - 1, length + 1, length + 8, len(content) - 8, 10**8, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 1]
        claim = rng.choice(claims)
        return claim.to_bytes(8, "little") + content[8:]
    if kind < 0.85:
        header = damage_bytes(rng, header)
        return len(header).to_bytes(8, "little") + header + data
    return damage_bytes(rng, content)


def damage_text(rng: Random, text: str) -> str:
    """A recipe or a λ rule with one to four symbols put in, taken out, or doubled."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        piece = rng.choice([rng.choice(SYMBOLS), chr(rng.randrange(0x110000)), text[at : at + rng.randrange(9)], ""])
        text = text[:at] + piece + text[at + rng.choice([0, 0, 1, 3]) :]
    return text


def _rewrite_header(rng: Random, header: dict[str, Any]) -> bytes:
    """The same bytes described otherwise, mostly as the format allows: order, names, spaces, escapes, dtypes of one size."""
    metadata = header.pop("__metadata__", None)
    names = rng.sample(sorted(header), len(header))
    renamed = {rng.choice(TEXTS) + "." * rng.randrange(3) if rng.random() < 0.3 else name: header[name] for name in names}
    for entry in renamed.values():
        if rng.random() < 0.3:
            entry["shape"] = [1] * rng.choice([1, 3, 63, 64, 65]) + entry["shape"]
        if rng.random() < 0.3:
            size = next((group for group in SAME_SIZE if entry["dtype"] in group), [entry["dtype"]])
            entry["dtype"] = rng.choice(size)
    if rng.random() < 0.5:
        at = rng.choice([0, 4])
        entry = {"dtype": "F32", "shape": [rng.choice(NUMBERS), rng.choice(NUMBERS), 0], "data_offsets": [at, at]}
        renamed["empty"] = {key: entry[key] for key in rng.sample(sorted(entry), 3)}
    if rng.random() < 0.7:
        renamed["__metadata__"] = rng.choice([metadata, None, {}, {text: text for text in TEXTS}, {"a": 1}])
    text = json.dumps(renamed, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    return text.encode("utf-8", "surrogatepass") + b" " * rng.randrange(9)


def _damage_tree(rng: Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.01:
        return _strange(rng, tree)
    container, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind <= 3:
        container[key] = _strange(rng, container[key])
    elif kind == 4:
        del container[key]
    elif kind == 5:
        other, other_key = rng.choice(places)
        container[key] = json.loads(json.dumps(other[other_key]))
    elif isinstance(container, dict):
        value = container.pop(key) if kind == 6 else 0
        container[rng.choice([*TEXTS, f"RAWKEY{rng.randrange(len(RAW))}"]) if kind == 6 else "RAWKEY14"] = value
    else:
        container.insert(key, _strange(rng, container[key]))
    return tree


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _strange(rng: Random, value: Any) -> Any:
    if isinstance(value, int) and rng.random() < 0.4:
        return value + rng.choice([-8, -4, -1, 1, 2, 4, 8, 2**32, 2**64])
    if value == 0 and rng.random() < 0.2:
        return f"RAW{RAW.index('-0')}"
    kind = rng.randrange(10)
    if kind <= 1:
        return rng.choice(NUMBERS)
    if kind <= 3:
        return rng.choice(TEXTS)
    if kind <= 5:
        return rng.choice([None, True, False, [], {}, [value], {"a": value}, [value] * 70])
    if kind == 6:
        return [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
    if kind == 7:
        return str(value)
    return f"RAW{rng.randrange(len(RAW))}"
