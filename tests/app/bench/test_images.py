"""Images that a benchmark sends."""

from pathlib import Path

import pytest

from app.bench import images
from app.errors import StartError


def test_large_file_is_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MAX_BYTES", 10)
    files = [tmp_path / name for name in ("large", "first", "too-much", "second")]
    for file, length in zip(files, (11, 6, 5, 4), strict=True):
        file.write_bytes(file.name[:1].encode() * length)
    assert images.read(files) == ([b"f" * 6, b"s" * 4], 2)
    with pytest.raises(StartError, match="128 MiB"):
        images.read(files[:1])
