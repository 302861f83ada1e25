"""The local store, and image layouts of others: artifacts on disk."""

from modelpack.atomic_file import disk_errors
from modelpack.store.cleanup import Cleanup
from modelpack.store.ingest import check_space
from modelpack.store.layout import LayoutRepository, open_layout
from modelpack.store.layout_target import LayoutTarget, create_layout
from modelpack.store.local import GRACE, PARTIAL_AGE, Store, StoredTag
from modelpack.store.repository import StoreRepository
from modelpack.store.usage import ModelUsage, Usage

__all__ = [
    "GRACE",
    "PARTIAL_AGE",
    "Cleanup",
    "LayoutRepository",
    "LayoutTarget",
    "ModelUsage",
    "Store",
    "StoreRepository",
    "StoredTag",
    "Usage",
    "check_space",
    "create_layout",
    "disk_errors",
    "open_layout",
]
