"""Every file below a folder is exactly one of taken, rejected and left out; what is or claims to be an image is never left out."""

import contextlib
import os
import socket
import tempfile
import threading
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import DataError
from snl_runtime.images.listing import LeftOut, display_name, list_images, list_pattern
from snl_runtime.line.sources import ImageFolderSource

PIXELS = np.add.outer(np.arange(48), np.arange(64))[:, :, None].repeat(3, axis=2).astype(np.uint8)
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(20)


def names(root, paths):
    return [Path(path.path if isinstance(path, LeftOut) else path).relative_to(root).as_posix() for path in paths]


def reasons(listing):
    return {one.path.relative_to(listing.root).as_posix(): one.reason for one in (*listing.rejected, *listing.left_out)}


def put(path, content=PNG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".jp2", ".ppm", ".pbm", ".pam", ".ras", ".avif"])
def test_every_format_is_told_by_its_content_whatever_its_name(suffix, tmp_path):
    pixels = PIXELS[:, :, 0] if suffix == ".pbm" else PIXELS
    try:
        data = cv2.imencode(suffix, pixels)[1].tobytes()
    except cv2.error:
        pytest.skip(f"this OpenCV writes no {suffix}")
    for name in ("a", f"a{suffix.upper()}", "a.jfif", "a.txt", "day 2/a.dat"):
        put(tmp_path / name, data)
    listing = list_images(tmp_path)
    assert len(listing.taken) == 5
    assert not listing.rejected
    assert not listing.left_out


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"\x89PNG\r\n\x1a\n",
        b"GIF87a",
        b"II+\0\x08\0\0\0",
        b"MM\0+\0\x08\0\0",
        b"P2\n# made by hand\n3 2\n",
        b"\xff\x4f\xff\x51\0\x2f",
        b"\0\0\0\x20ftypavis\0\0\0\0avif",
        b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif",
        b"BM6\x24\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    ],
)
def test_what_begins_like_a_picture_is_taken_so_that_reading_says_what_is_wrong(head, tmp_path):
    put(tmp_path / "x", head)
    assert names(tmp_path, list_images(tmp_path).taken) == ["x"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", b""),
        ("b.JPG", b"just text"),
        ("c.heic", HEIC),
        ("no-suffix", HEIC),
        ("d.jxl", b"\xff\x0a" + bytes(20)),
        ("e.cr2", b"unknown"),
        ("f.tga", bytes(30)),
        ("g.exr", b"\x76\x2f\x31\x01" + bytes(20)),
        ("h.dcm", bytes(128) + b"DICM"),
    ],
)
def test_what_is_or_claims_to_be_a_picture_and_cannot_be_read_is_rejected(name, content, tmp_path):
    put(tmp_path / name, content)
    assert names(tmp_path, list_images(tmp_path).rejected) == [name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"text"),
        ("empty", b""),
        ("line.avi", b"RIFF\0\0\0\0AVI LIST"),
        ("line.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42"),
        ("scores.csv", b"P1 part,score\n"),
        ("map.npy", b"\x93NUMPY"),
        ("BMW.txt", b"BMW is a car maker from Munich"),
    ],
)
def test_what_is_neither_by_name_nor_by_content_a_picture_is_left_out(name, content, tmp_path):
    put(tmp_path / name, content)
    assert reasons(list_images(tmp_path)) == {name: "is not an image"}


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir/a.png/SYNOFILE_THUMB_M.png",
        "$RECYCLE.BIN/a.png",
        "System Volume Information/a.png",
        "lost+found/a.png",
        "#recycle/a.png",
        "__MACOSX/a.png",
        "._a.png",
        ".cache/a.png",
        "Thumbs.db",
        "DESKTOP.INI",
        ".DS_Store",
    ],
)
def test_junk_of_storage_and_desktops_is_left_out_below_any_folder(name, tmp_path):
    put(tmp_path / name)
    put(tmp_path / "day1" / name)
    put(tmp_path / "day1" / "part.png")
    listing = list_images(tmp_path)
    assert names(tmp_path, listing.taken) == ["day1/part.png"]
    assert names(tmp_path, listing.left_out) == sorted([name, f"day1/{name}"])


def test_links_are_followed_once_and_a_folder_is_known_by_its_own_path(tmp_path):
    root, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    put(root / "b" / "1.png")
    put(elsewhere / "2.png")
    (root / "a").symlink_to(root / "b")
    (root / "loop").symlink_to(root)
    (root / "c").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "b")
    (root / "3.png").symlink_to(elsewhere / "2.png")
    listing = list_images(root)
    assert names(root, listing.taken) == ["3.png", "b/1.png", "c/2.png"]
    assert set(reasons(listing)) == {"a", "loop", "c/back"}
    assert reasons(listing)["a"] == f"is the same folder as {root / 'b'}"


def test_link_to_nothing_is_rejected_where_it_claims_to_be_a_picture(tmp_path):
    for name in ("a.png", "b.txt", "c"):
        (tmp_path / name).symlink_to("gone")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    listing = list_images(tmp_path)
    assert names(tmp_path, listing.rejected) == ["a.png", "self.jpg"]
    assert names(tmp_path, listing.left_out) == ["b.txt", "c"]


def test_pipes_and_sockets_are_left_out_without_being_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert names(tmp_path, list_images(tmp_path).left_out) == ["pipe.png", "socket.png"]


@contextlib.contextmanager
def without_root():
    """Root may read everything: be nobody for a while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no permissions of that kind")
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_what_may_not_be_read_is_rejected():
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, whose parents are closed to others
        root = Path(folder)
        root.chmod(0o755)
        put(root / "a.png").chmod(0)
        put(root / "b.png").chmod(0o644)
        put(root / "closed" / "c.png")
        (root / "closed").chmod(0)
        try:
            with without_root():
                listing = list_images(root)
        finally:
            (root / "closed").chmod(0o755)
    assert names(root, listing.taken) == ["b.png"]
    assert names(root, listing.rejected) == ["a.png", "closed"]


def test_own_output_folders_are_left_out_by_their_real_path(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "overlays" / "a.jpg")
    (tmp_path / "way").symlink_to(tmp_path / "overlays")
    listing = list_images(tmp_path, exclude=[tmp_path / "way"])
    assert names(tmp_path, listing.taken) == ["a.png"]
    assert set(reasons(listing)) == {"overlays/a.jpg", "way"}
    with pytest.raises(DataError, match="name another folder for the output"):
        list_images(tmp_path, exclude=[tmp_path])


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("a.png", ["a.png"]),
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "day 1/b.png", "day 1/deep/c.png"]),
        ("**", ["a.png", "day 1/b.png", "day 1/deep/c.png"]),
        ("day*", ["day 1/b.png", "day 1/deep/c.png"]),
        ("[ab].*", ["a.png"]),
        ("odd[1].png", ["odd[1].png"]),
    ],
)
def test_folder_file_or_pattern_names_the_pictures(pattern, taken, tmp_path, monkeypatch):
    for name in ("a.png", "day 1/b.png", "day 1/deep/c.png", "@eaDir/t.png"):
        put(tmp_path / name)
    if pattern.startswith("odd"):
        put(tmp_path / "odd[1].png")
    monkeypatch.chdir(tmp_path)
    listing = list_pattern(pattern)
    assert [path.as_posix() for path in listing.taken] == taken
    assert len({*listing.taken, *(one.path for one in listing.left_out)}) == len(listing.taken) + len(listing.left_out)
    assert [path.as_posix() for path in (Path(os.path.relpath(path, tmp_path)) for path in list_pattern(tmp_path / pattern).taken)] == taken


@pytest.mark.parametrize(("pattern", "message"), [("*.bmp", "no file matches"), ("gone.png", "does not exist"), ("notes.txt", "is not an image")])
def test_pattern_that_gives_nothing_is_one_clear_line(pattern, message, tmp_path, monkeypatch):
    put(tmp_path / "notes.txt", b"text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        list_pattern(pattern)
    assert "\n" not in str(caught.value)


def test_summary_counts_and_require_all_names_the_first(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png", b"")
    put(tmp_path / "c.heic", HEIC)
    put(tmp_path / "d.txt", b"x")
    listing = list_images(tmp_path)
    assert listing.summary().endswith("1 images taken, 2 cannot be taken, 1 files left out")
    with pytest.raises(DataError, match=r"b\.png is empty \(0 bytes\).*1 more cannot be taken"):
        listing.require_all()


def test_name_that_is_not_utf8_is_taken_and_shown_with_escapes(tmp_path):
    path = tmp_path / os.fsdecode(b"part_\xff.png")
    try:
        put(path)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (taken,) = list_images(tmp_path).taken
    assert taken == path
    assert display_name(taken.name) == "part_\\xff.png"


NAMES = st.sampled_from(
    ["a.png", "b.PNG", "c.jpg", "part", "x.heic", "y.txt", "good", "day1", "@eaDir", ".hidden", "Thumbs.db", "ü.png", os.fsdecode(b"\xfe\xff.png")]
)
CONTENTS = st.sampled_from([PNG, b"", b"text", HEIC, PNG[:40], cv2.imencode(".jpg", PIXELS)[1].tobytes()])
PLACES = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: Path(*parts))
THINGS = st.lists(st.tuples(PLACES, st.one_of(CONTENTS, PLACES, st.just(None))), max_size=14)


def plant(root, things):
    """Make files (bytes), folders (None) and links (a path below the root, or to nothing) where there is room for them."""
    for place, what in things:
        path = root / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if what is None:
                path.mkdir()
            elif isinstance(what, Path):
                path.symlink_to(os.path.relpath(root / what, path.parent))
            elif not os.path.lexists(path):
                path.write_bytes(what)
        except (FileExistsError, NotADirectoryError, OSError):
            continue


def real(path):
    """A file's path through no link but itself."""
    return path.parent.resolve() / path.name


def files_below(root):
    """Files and links below the root, following none of them, as real paths."""
    return {
        Path(where, name)
        for where, folders, files in os.walk(root)
        for name in (*files, *(folder for folder in folders if Path(where, folder).is_symlink()))
    }


@given(things=THINGS)
@settings(max_examples=150, deadline=None)
def test_every_file_of_a_random_tree_is_taken_rejected_or_left_out_exactly_once(things):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "in"
        root.mkdir()
        plant(root, things)
        listing = list_images(root)
        found = [*listing.taken, *(one.path for one in (*listing.rejected, *listing.left_out))]
        counts = Counter(real(path) for path in found if path.is_symlink() or not path.is_dir())
        followed = {path for path in files_below(root) - set(counts) if path.is_symlink() and path.is_dir()}
        assert set(counts) | followed == files_below(root)
        assert max(counts.values(), default=1) == 1
        assert list_images(root) == listing
        check_every_offer_is_a_frame(root, listing)


def check_every_offer_is_a_frame(root, listing):
    if not listing.taken and not listing.rejected:
        return
    source = ImageFolderSource(root)
    with source:
        frames = list(source.frames(threading.Event()))
    assert [frame.source_id for frame in frames] == sorted(map(str, [*listing.taken, *(one.path for one in listing.rejected)]), key=Path)
    assert all((frame.image is None) is (frame.fault is not None) for frame in frames)
    assert source.counters.frames_announced == len(frames)
