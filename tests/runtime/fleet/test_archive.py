"""An archive is listed by the rules of every command: each image once, those that cannot be read with the reason."""

import cv2
import pytest

from snl_runtime.errors import ConfigError, DataError
from snl_runtime.fleet.archive import day_of, list_archive, read_bytes
from snl_runtime.images.listing import list_images


def test_rows_of_a_folder_are_its_listing_with_rejected_files_as_faults(parts):
    (parts / "notes.txt").write_text("no image")
    (parts / "empty.png").write_bytes(b"")
    rows = list_archive(str(parts), product="bottle").rows
    listing = list_images(parts)
    assert [row.file for row in rows] == sorted(str(path) for path in (*listing.taken, *(one.path for one in listing.rejected)))
    assert {row.file for row in rows if row.fault} == {str(parts / "empty.png")}
    assert {row.product for row in rows} == {"bottle"}


def test_first_folder_names_the_product_where_that_is_asked_for(parts, model):
    (parts / "cap" / "deep").mkdir(parents=True)
    cv2.imwrite(str(parts / "cap" / "deep" / "x.png"), model.good_frame(0))
    products = {row.file: row.product for row in list_archive(str(parts), product="bottle", product_folders=True).rows}
    assert products[str(parts / "cap" / "deep" / "x.png")] == "cap"
    assert products[str(parts / "a_good0.png")] == "bottle"


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("20260131T235959.999Z_top_000012_REJECT.png", "2026-01-31"),
        ("20269931T235959.999Z_top_000012_REJECT.png", "1970-01-02"),  # digits that are no date
        ("part.png", "1970-01-02"),
    ],
)
def test_day_is_that_of_the_capture_in_the_name_else_of_the_last_change(name, day):
    assert day_of(name, 86_400 * 10**9) == day


def test_folder_without_images_is_refused_with_its_name(tmp_path):
    with pytest.raises(DataError, match="0 images taken"):
        list_archive(str(tmp_path), product=None)


def test_address_is_listed_as_the_folder_is(parts):
    pytest.importorskip("pyarrow")
    (parts / "notes.txt").write_text("no image")
    (parts / "empty.png").write_bytes(b"")
    (parts / ".hidden.png").write_bytes((parts / "a_good0.png").read_bytes())
    folder, address = (list_archive(data, product=None).rows for data in (str(parts), f"file://{parts}"))
    assert [(row.file, row.day, row.fault is None) for row in address] == [(f"file://{row.file}", row.day, row.fault is None) for row in folder]


@pytest.fixture
def table(tmp_path, model):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [cv2.imencode(".png", model.good_frame(seed))[1].tobytes() for seed in range(5)]
    columns = {"image": images, "product": ["bottle", "cap", None, "bottle", "cap"], "captured_at": ["2026-01-02T23:30:00-02:00"] * 5}
    path = tmp_path / "frames.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_rows_of_a_table_carry_their_row_group_product_and_day(table):
    rows = list_archive(str(table), product="jar").rows
    assert [(row.row, row.row_group, row.product) for row in rows] == [
        (0, 0, "bottle"),
        (1, 0, "cap"),
        (2, 1, "jar"),
        (3, 1, "bottle"),
        (4, 2, "cap"),
    ]
    assert {row.day for row in rows} == {"2026-01-03"}  # in UTC


def test_table_without_images_is_refused_with_its_columns(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"picture": [b""]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="x.parquet has the columns picture; a table of images needs the column 'image'"):
        list_archive(str(tmp_path / "x.parquet"), product=None)


def test_time_that_is_none_is_refused_with_file_and_row(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [b"", b""], "captured_at": ["2026-01-01", "noon"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="x.parquet row 1: captured_at must be a time .*got 'noon'"):
        list_archive(str(tmp_path / "x.parquet"), product=None)


def test_file_that_is_no_table_is_refused_with_its_name(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="x.parquet as a Parquet table"):
        list_archive(str(tmp_path / "x.parquet"), product=None)


def test_address_with_credentials_is_refused_without_telling_them():
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="holds credentials") as refused:
        list_archive("s3://user:hunter2@bucket/frames", product=None)
    assert "hunter2" not in str(refused.value)


@pytest.mark.station
def test_objects_of_an_s3_store_are_listed_and_read_as_files_are(parts, store):
    (parts / "empty.png").write_bytes(b"")
    store.put(parts, "frames/bottle")
    rows = list_archive(store.address("frames"), product=None, product_folders=True).rows
    assert [row.file for row in rows] == [store.address(f"frames/bottle/{file.name}") for file in sorted(parts.iterdir())]
    assert {row.product for row in rows} == {"bottle"}
    assert [row.fault is None for row in rows] == [row.fault is None for row in list_archive(str(parts), product=None).rows]
    assert [read_bytes(row.file) for row in rows] == [file.read_bytes() for file in sorted(parts.iterdir())]
    store.client.delete_object(Bucket="plant", Key="frames/bottle/empty.png")
    with pytest.raises(DataError, match="empty.png"):
        read_bytes(next(row.file for row in rows if "empty.png" in row.file))


ODD_NAMES = ("a b.png", "50%.png", "50%25.png", "a#1.png", "part+1.png", "\u00e4.png")


def test_address_of_a_file_with_an_odd_name_is_read_as_that_file(tmp_path, model):
    pytest.importorskip("pyarrow")
    for seed, name in enumerate((*ODD_NAMES, "a", "50")):
        cv2.imwrite(str(tmp_path / "x.png"), model.good_frame(seed))
        (tmp_path / "x.png").rename(tmp_path / name)
    rows = list_archive(f"file://{tmp_path}", product=None).rows
    assert sorted(read_bytes(row.file) for row in rows) == sorted(file.read_bytes() for file in tmp_path.iterdir())
    assert len(rows) == len(ODD_NAMES) + 2


@pytest.mark.station
@pytest.mark.parametrize("path", ["x.parquet", "frames"])
def test_missing_bucket_is_refused_with_its_name_and_no_secret(store, secret, path):
    with pytest.raises(DataError, match="nobucket.*NO_SUCH_BUCKET|nobucket.*does not exist") as refused:
        list_archive(store.address(path).replace("plant", "nobucket"), product=None)
    assert secret not in str(refused.value)
    assert "\n" not in str(refused.value)
