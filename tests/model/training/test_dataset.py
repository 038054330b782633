import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.training.dataset import DatasetError, load_labelled_images


def write_parquet(path: Path, targets: list[int], features: object) -> Path:
    table = pa.table({"image": [{"bytes": bytes([target]), "path": None} for target in targets], "label": targets})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


FEATURES = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def test_class_folders_are_sorted(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/c.JPG", "cat/deeper/a.webp", "cat/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    images = load_labelled_images(tmp_path)
    assert images.labels == ("cat", "dog")
    assert [images.read(i) for i in range(len(images))] == [(b"cat/c.JPG", 0), (b"cat/deeper/a.webp", 0), (b"dog/b.png", 1)]


def test_parquet_in_hugging_face_layout(tmp_path: Path) -> None:
    images = load_labelled_images(write_parquet(tmp_path / "test.parquet", [1, 0, 1], FEATURES))
    assert images.labels == ("cat", "dog")
    assert [images.read(i) for i in range(len(images))] == [(b"\x01", 1), (b"\x00", 0), (b"\x01", 1)]


def test_unreadable_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither a folder"):
        load_labelled_images(tmp_path / "nowhere.parquet")
    with pytest.raises(DatasetError, match="no images in class folders"):
        load_labelled_images(tmp_path)
    with pytest.raises(DatasetError, match="label outside 0 to 1"):
        load_labelled_images(write_parquet(tmp_path / "a.parquet", [0, 2], FEATURES))
    with pytest.raises(DatasetError, match="not in Hugging Face's layout"):
        load_labelled_images(write_parquet(tmp_path / "b.parquet", [0], {}))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match="not in Hugging Face's layout"):
        load_labelled_images(tmp_path / "c.parquet")
