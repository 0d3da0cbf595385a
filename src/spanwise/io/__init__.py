"""Files that appear whole or not at all, and tensors read by offset.

Attributes load on first use: writing JSON needs no torch.
"""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.io._atomic import atomic_file as atomic_file
    from spanwise.io._atomic import atomic_folder as atomic_folder
    from spanwise.io._atomic import check_place as check_place
    from spanwise.io._atomic import file_digest as file_digest
    from spanwise.io._atomic import write_bytes as write_bytes
    from spanwise.io._atomic import write_json as write_json
    from spanwise.io._manifest import Manifest as Manifest
    from spanwise.io._reader import TensorReader as TensorReader
    from spanwise.io._reader import open_tensors as open_tensors
    from spanwise.io._shards import Shard as Shard
    from spanwise.io._shards import ShardFile as ShardFile
    from spanwise.io._shards import SharedFolder as SharedFolder
    from spanwise.io._shards import plan_shards as plan_shards
    from spanwise.io._writer import ShardedWriter as ShardedWriter
    from spanwise.io._writer import save_tensors as save_tensors

_HOMES = {
    "Manifest": "_manifest",
    "Shard": "_shards",
    "ShardFile": "_shards",
    "SharedFolder": "_shards",
    "ShardedWriter": "_writer",
    "TensorReader": "_reader",
    "atomic_file": "_atomic",
    "atomic_folder": "_atomic",
    "check_place": "_atomic",
    "file_digest": "_atomic",
    "open_tensors": "_reader",
    "plan_shards": "_shards",
    "save_tensors": "_writer",
    "write_bytes": "_atomic",
    "write_json": "_atomic",
}

__all__ = [
    "Manifest",
    "Shard",
    "ShardFile",
    "ShardedWriter",
    "SharedFolder",
    "TensorReader",
    "atomic_file",
    "atomic_folder",
    "check_place",
    "file_digest",
    "open_tensors",
    "plan_shards",
    "save_tensors",
    "write_bytes",
    "write_json",
]

__getattr__, __dir__ = lazy_attributes(
    "spanwise.io",
    {name: f"spanwise.io.{module}" for name, module in _HOMES.items()},
    rooms=frozenset({"configs", "runs"}),
)
