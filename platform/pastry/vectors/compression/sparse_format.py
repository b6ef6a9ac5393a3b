"""Sparse tensors, lossless: what a skill vector with the encoding "sparse-zstd" holds in its safetensors files.

Differences of checkpoints that were trained in bfloat16 are mostly exact zeros. Each tensor is stored as a U8 tensor of the
same name: a table of its blocks' lengths (uint32, little endian), then the blocks in order. A block (rounding.BLOCK elements)
is one zstandard frame over a bitmap of the elements that are not zero (lowest bit first), the bytes 0 of those elements, their
bytes 1, and so on. "Zero" is the bit pattern 0, so −0.0 survives. dtype and shape stand in the manifest, and the digests
there are of the decoded blocks, so that a vector has the same fingerprint in either encoding.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import zstandard

from pastry.errors import PastryError
from pastry.vectors.rounding import BLOCK, FLOAT_DTYPES
from pastry.vectors.safetensors_format import TensorInfo, TensorSpec

SPARSE_ENCODING = "sparse-zstd"
# Higher levels look for repetitions, of which there are none, and come out larger and slower.
_LEVEL = 1
_LENGTH = np.dtype("<u4")

ReadBytes = Callable[[TensorInfo, int, memoryview], None]
"""Fill the buffer with a stored tensor's bytes from an offset in it."""


def encode_block(stored: np.ndarray) -> bytes:
    """The frame of a block given as stored, in any of FLOAT_DTYPES."""
    bits = stored.view(f"<u{stored.itemsize}")
    there = bits != 0
    planes = bits[there].view(np.uint8).reshape(-1, stored.itemsize).T
    plain = np.packbits(there, bitorder="little").tobytes() + planes.tobytes()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(plain)


def decode_block(frame: bytes, out: np.ndarray) -> None:
    """Fill `out` with the block that `frame` holds. A malformed frame is a ValueError, before more is allocated than fits."""
    elements, itemsize = out.size, out.itemsize
    bitmap_bytes = -(-elements // 8)
    largest = bitmap_bytes + elements * itemsize
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
        if not bitmap_bytes <= claimed <= largest:
            raise ValueError(f"a block claims {claimed} bytes, wanted {bitmap_bytes} to {largest}")
        plain = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(f"a block cannot be decompressed: {error}") from error
    there = np.unpackbits(plain[:bitmap_bytes], count=elements, bitorder="little").view(bool)
    planes = plain[bitmap_bytes:]
    count = int(np.count_nonzero(there))
    if planes.size != count * itemsize:
        raise ValueError(f"a block has {planes.size} bytes for {count} elements of {itemsize} bytes")
    bits = out.view(f"<u{itemsize}")
    bits.fill(0)
    bits[there] = np.ascontiguousarray(planes.reshape(itemsize, count).T).view(bits.dtype).reshape(-1)


def block_table(lengths: list[int]) -> bytes:
    """What stands in front of blocks of these lengths."""
    return np.array(lengths, _LENGTH).tobytes()


class SparseTensors:
    """Reads the tensors that a manifest describes (`specs`) out of the U8 tensors in the files (`blobs`).

    `tensors` describes them as decoded. Raises PastryError, naming file and tensor, for whatever does not fit.
    """

    def __init__(self, blobs: Mapping[str, TensorInfo], specs: Mapping[str, TensorSpec], read_bytes: ReadBytes):
        self._blobs, self._read_bytes = blobs, read_bytes
        self._offsets: dict[str, np.ndarray] = {}
        self.tensors = dict(blobs)
        for name, blob in blobs.items():
            spec = specs.get(name)
            if spec is None:
                continue
            if blob.dtype != "uint8" or len(blob.shape) != 1:
                raise _malformed(blob, f"it is {blob.dtype} {list(blob.shape)}, wanted a list of uint8")
            if math.prod(max(size, 1) for size in spec.shape) >= 1 << 63 or len(spec.shape) > 64:
                raise _malformed(blob, f"the manifest says shape {list(spec.shape)}, which is too large to count")
            if spec.dtype not in FLOAT_DTYPES:
                raise _malformed(blob, f"the manifest says dtype {spec.dtype}, wanted one of {', '.join(FLOAT_DTYPES)}")
            self.tensors[name] = TensorInfo(name, spec.dtype, spec.shape, blob.file, blob.offset)

    def check(self, name: str) -> None:
        """Raise PastryError unless there are as many blocks as the tensor named `name` takes."""
        if name in self.tensors:
            self._block_offsets(self.tensors[name])

    def read(self, info: TensorInfo, offset: int, into: memoryview) -> None:
        """Fill `into` with the decoded tensor's bytes from `offset`; whole blocks cost least."""
        dtype = FLOAT_DTYPES[info.dtype]
        offsets = self._block_offsets(info)
        block_bytes = BLOCK * dtype.itemsize
        end = offset + len(into)
        for index in range(offset // block_bytes, math.ceil(end / block_bytes)):
            begin = index * block_bytes
            size = min(block_bytes, info.nbytes - begin)
            first, last = max(offset, begin), min(end, begin + size)
            part = into[first - offset : last - offset]
            if last - first == size:
                self._decode(info, offsets[index : index + 2], np.frombuffer(part, dtype))
            else:
                block = np.empty(size // dtype.itemsize, dtype)
                self._decode(info, offsets[index : index + 2], block)
                part[:] = memoryview(block).cast("B")[first - begin : last - begin]

    def _decode(self, info: TensorInfo, bounds: np.ndarray, out: np.ndarray) -> None:
        begin, end = map(int, bounds)
        frame = bytearray(end - begin)
        self._read_bytes(self._blobs[info.name], begin, memoryview(frame))
        try:
            decode_block(bytes(frame), out)
        except ValueError as error:
            raise _malformed(info, str(error)) from error

    def _block_offsets(self, info: TensorInfo) -> np.ndarray:
        """Where each block begins in the blob, and where the last one ends."""
        if info.name not in self._offsets:
            blob = self._blobs[info.name]
            blocks = -(-info.elements // BLOCK)
            table_bytes = blocks * _LENGTH.itemsize
            if table_bytes > blob.nbytes:
                raise _malformed(blob, f"{blob.nbytes} bytes cannot hold {blocks} blocks")
            table = np.empty(blocks, _LENGTH)
            self._read_bytes(blob, 0, memoryview(table).cast("B"))
            offsets = np.concatenate([[table_bytes], table_bytes + np.cumsum(table, dtype=np.int64)])
            if offsets[-1] != blob.nbytes:
                raise _malformed(blob, f"its blocks end at byte {offsets[-1]}, wanted {blob.nbytes}")
            self._offsets[info.name] = offsets
        return self._offsets[info.name]


def largest_blob(spec: TensorSpec) -> int:
    """More bytes than the tensor can take when encoded."""
    # zstandard's own bound is 1/256 of the content and less than 128 bytes for a small one.
    return 2 * spec.nbytes + 1024 * math.ceil(spec.elements / BLOCK)


def _malformed(info: TensorInfo, what: str) -> PastryError:
    return PastryError(f"{info.file}: tensor {info.name} is damaged ({what}); compress or pull the skill vector again")
