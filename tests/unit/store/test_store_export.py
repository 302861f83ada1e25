"""What lies in the way of an export is known before anything is fetched for it."""

from pathlib import Path

import pytest

from modelpack.errors import InvalidInputError
from modelpack.oci.digest import Digest
from modelpack.store import Store
from modelpack.store.export import check_export

FILES = {"LICENSE": Digest.of(b"Apache-2.0")}


@pytest.mark.parametrize("where", ["file", "file/sub", "file/sub/sub", "dangling", "dangling/sub"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, where: str):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    with pytest.raises(InvalidInputError, match=f"{where.partition('/')[0]} is not a folder"):
        check_export(Store.open(tmp_path / "store").blobs, FILES, tmp_path / where)


@pytest.mark.parametrize("where", ["", "new", "new/sub", "link", "link/sub"])
def test_a_place_that_is_a_folder_or_can_be_one_is_taken(tmp_path: Path, where: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")

    check_export(Store.open(tmp_path / "store").blobs, FILES, tmp_path / where)
