"""Reading tars that nobody vouches for, and writing the same bytes every time."""

import contextlib
import io
import struct
import tarfile
import time

import pytest
from fakes.tars import entry, in_pieces, make_tar
from hypothesis import given
from hypothesis import strategies as st

from modelpack import tar
from modelpack.errors import InvalidContentError


def read(content: bytes, **options: int) -> dict[str, bytes]:
    stream = tar.ChunkStream(iter(in_pieces(content)))
    return {
        member.name: b"".join(tar.content(stream, member))
        for member in tar.read_members(stream, **options)
        if member.kind is tar.Kind.FILE
    }


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_the_standard_library_writes_is_read(format_):
    long = "/".join(["folder" * 5] * 4) + "/weights.gguf"
    content = make_tar(
        entry("d", type=tarfile.DIRTYPE),
        entry("./a", b"hello"),
        entry("empty"),
        entry(long, b"x" * 5000),
        format_=format_,
    )

    assert read(content) == {"a": b"hello", "empty": b"", long: b"x" * 5000}


def test_names_beyond_ustar_come_from_the_extended_header():
    long = "x" * 3000 + "/é.gguf"

    assert read(make_tar(entry(long, b"1"))) == {long: b"1"}
    assert read(make_tar(entry(long, b"1"), format_=tarfile.GNU_FORMAT)) == {long: b"1"}


def test_content_that_nobody_reads_is_passed_over():
    stream = tar.ChunkStream(iter(in_pieces(make_tar(entry("a", b"1" * 3000), entry("b", b"2")))))

    assert [(member.name, member.size) for member in tar.read_members(stream)] == [("a", 3000), ("b", 1)]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,120}(/[a-zé]{1,90})?", fullmatch=True), st.binary(max_size=2000)))
def test_what_we_write_we_and_the_standard_library_read(files):
    parts = [
        chunk
        for name, content in files.items()
        for chunk in tar.write_file(name, len(content), contextlib.nullcontext(iter([content])))
    ]
    content = b"".join([*parts, tar.END])

    assert read(content) == files
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert {one.name: archive.extractfile(one).read() for one in archive} == files
        assert all((one.mtime, one.uid, one.gid, one.mode) == (0, 0, 0, 0o644) for one in archive)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "..", "a/.."])
def test_a_path_that_leaves_its_folder_is_refused(name):
    with pytest.raises(InvalidContentError, match="unsafe path"):
        read(make_tar(entry(name, b"x")))


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_file_without_a_name_is_refused_and_a_folder_without_one_is_the_folder_itself(name):
    with pytest.raises(InvalidContentError, match="without a name"):
        read(make_tar(entry(name, b"x")))
    assert read(make_tar(entry(".", type=tarfile.DIRTYPE), entry("a", b"x"))) == {"a": b"x"}


def test_a_path_in_an_extended_header_is_no_less_refused():
    with pytest.raises(InvalidContentError, match="unsafe path"):
        read(make_tar(entry("fine", b"x", pax_headers={"path": "../evil"})))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_told_as_what_they_are(kind):
    stream = tar.ChunkStream(iter([make_tar(entry("x", type=kind, linkname="/etc/passwd"))]))

    (member,) = tar.read_members(stream)
    assert member.kind in (tar.Kind.LINK, tar.Kind.OTHER)


@pytest.mark.parametrize("cut", [100, 512, 700, 1500])
def test_an_archive_that_ends_too_early_is_refused(cut):
    with pytest.raises(InvalidContentError, match="ends"):
        read(make_tar(entry("a", b"x" * 1000))[:cut])


def test_too_many_entries_are_refused():
    content = make_tar(*(entry(f"f{number}") for number in range(11)))

    assert len(read(content, max_entries=11)) == 11
    with pytest.raises(InvalidContentError, match="more than 10 entries"):
        read(content, max_entries=10)


def test_a_huge_extended_header_is_never_read_into_memory():
    header = bytearray(make_tar(entry("x", b"1", pax_headers={"comment": "y" * 200}))[:512])
    header[124:136] = b"%011o\0" % (1 << 32)
    with pytest.raises(InvalidContentError, match="extended header of 4294967296 bytes"):
        read(resum(header) + b"\0" * 4096)


def test_a_size_beyond_reason_is_refused():
    header = bytearray(make_tar(entry("x"))[:512])
    header[124:136] = b"\x80" + struct.pack(">3xQ", 1 << 60)
    with pytest.raises(InvalidContentError, match="claims a file of"):
        read(resum(header))


def test_a_folder_with_content_is_refused():
    header = bytearray(make_tar(entry("d", type=tarfile.DIRTYPE))[:512])
    header[124:136] = b"%011o\0" % 512
    with pytest.raises(InvalidContentError, match="is no file, and yet has 512 bytes"):
        read(resum(header) + b"x" * 512)


@pytest.mark.parametrize("record", [b"garbage", b"7 a=bc", b"99 path=x\n", b"-3 a=b\n", b"0 a=b\n"])
def test_a_malformed_extended_header_is_refused(record):
    header = bytearray(make_tar(entry("x", b"1", pax_headers={"comment": "y"}))[:512])
    header[124:136] = b"%011o\0" % len(record)
    with pytest.raises(InvalidContentError, match="malformed"):
        read(resum(header) + record.ljust(512, b"\0") + b"\0" * 2048)


def test_no_file_has_more_than_three_extended_headers():
    long = b"x" * 300
    extension = make_tar(entry("x", b"1", pax_headers={"comment": "y"}))[:1024]
    gnu = make_tar(entry(long.decode(), b"1"), format_=tarfile.GNU_FORMAT)

    assert read(extension * 2 + gnu) == {long.decode(): b"1"}
    assert list(read(extension * 3 + make_tar(entry("a", b"1")))) == ["a"]
    with pytest.raises(InvalidContentError, match="more than 3 extended headers"):
        read(extension * 3 + gnu)


def test_what_else_an_extended_header_says_is_neither_kept_nor_judged():
    records = b"14 xattr=\xff\xfe=\n\n16 path=renamed\n"
    header = bytearray(make_tar(entry("x", b"1", pax_headers={"comment": "y"}))[:512])
    header[124:136] = b"%011o\0" % len(records)
    extension = resum(header) + records.ljust(512, b"\0")

    assert tar._extensions(b"x", records) == {"path": "renamed"}
    assert read(extension + make_tar(entry("a", b"1"))) == {"renamed": b"1"}


def test_an_extended_header_of_many_records_is_read_in_one_pass():
    # Where each record copies the rest, these take many seconds.
    records = b"6 a=b\n" * 300_000
    began = time.process_time()
    assert tar._extensions(b"x", records) == {}
    assert time.process_time() - began < 2


def test_a_global_header_that_renames_everything_is_refused():
    header = bytearray(make_tar(entry("x", b"1", pax_headers={"comment": "y"}))[:512])
    record = b"16 path=../evil\n"
    header[156:157], header[124:136] = b"g", b"%011o\0" % len(record)
    with pytest.raises(InvalidContentError, match="one name or size for all"):
        read(resum(header) + record.ljust(512, b"\0"))


@pytest.mark.parametrize("key", ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.numblocks"])
def test_a_sparse_file_is_refused(key):
    with pytest.raises(InvalidContentError, match="sparse"):
        read(make_tar(entry("x", b"1", pax_headers={key: "1"})))


@given(st.binary(max_size=1200))
def test_whatever_it_is_it_is_read_or_refused(content):
    with contextlib.suppress(InvalidContentError):
        read(content)


def resum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
