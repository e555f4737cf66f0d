"""Readers against files that were damaged or made to do harm; the notebook shows the usual cases."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet_files
import pytest
from PIL import Image

from fromage.data.captions import BadImage, open_captions
from fromage.data.sources import decode_image


def encode(colour: tuple[int, int, int] = (200, 30, 30), format: str = "JPEG") -> bytes:
    """A small image file."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(buffer, format)
    return buffer.getvalue()


def write_shard(path: Path, count: int) -> list[int]:
    """A shard of `count` examples in img2dataset's form; returns the offset behind each example."""
    ends = []
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            caption = f"picture {number}"
            files = {"jpg": encode((number, 0, 0)), "txt": caption.encode(), "json": json.dumps({"caption": caption}).encode()}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            ends.append(archive.offset)
    return ends


@pytest.mark.parametrize("step", [1, 97, 512])
def test_every_cut_of_a_shard_is_noticed(tmp_path: Path, step: int) -> None:
    """Wherever a tar is cut, whole examples are read, in order, and the loss is counted."""
    ends = write_shard(tmp_path / "whole.tar", 4)
    data = (tmp_path / "whole.tar").read_bytes()
    cut_path = tmp_path / "00000.tar"
    for cut in range(step, ends[-1] + 1, max(step, 97)):
        cut_path.write_bytes(data[:cut])
        source = open_captions(cut_path, "shards")
        captions = [example.caption for example in source]
        assert captions == [f"picture {number}" for number in range(len(captions))]
        assert len(captions) >= sum(end <= cut for end in ends)
        assert source.problems.counts == {"truncated tar": 1}
        assert source.problems.n_used == len(captions)


def test_the_rest_of_a_cut_shard_is_counted_exactly_with_statistics(tmp_path: Path) -> None:
    """img2dataset's _stats.json says how many examples there were; the next shard is read."""
    ends = write_shard(tmp_path / "00000.tar", 10)
    write_shard(tmp_path / "00001.tar", 5)
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:ends[3] + 600])
    (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 12, "successes": 10}))
    source = open_captions(tmp_path, "shards")
    assert sum(1 for _ in source) == 9
    assert source.problems.summary() == {
        "n_total": 15, "n_used": 9, "reasons": {"truncated tar": {"count": 6, "names": ["00000.tar"]}}}


def test_a_damaged_header_ends_a_shard_with_a_count(tmp_path: Path) -> None:
    """tarfile takes a broken header for the end of the archive, without a word."""
    ends = write_shard(tmp_path / "00000.tar", 6)
    data = bytearray((tmp_path / "00000.tar").read_bytes())
    data[ends[2]:ends[2] + 200] = b"\xaa" * 200
    (tmp_path / "00000.tar").write_bytes(bytes(data))
    source = open_captions(tmp_path, "shards")
    assert sum(1 for _ in source) == 3
    assert source.problems.counts == {"truncated tar": 1}


def test_going_on_gives_the_examples_behind(tmp_path: Path) -> None:
    """Stopped anywhere and continued, a pass sees the same examples and problems as one in one go."""
    write_shard(tmp_path / "00000.tar", 3)
    ends = write_shard(tmp_path / "00001.tar", 5)
    (tmp_path / "00001.tar").write_bytes((tmp_path / "00001.tar").read_bytes()[:ends[2] + 10])
    write_shard(tmp_path / "00002.tar", 2)
    source = open_captions(tmp_path, "shards")
    whole, problems = [*source], source.problems
    for count in range(1, len(whole)):
        first = open_captions(tmp_path, "shards")
        examples = iter(first)
        seen = [next(examples) for _ in range(count)]
        assert [*seen, *source.read(after=first.problems)] == whole
        assert source.problems == problems


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it holds: some bytes that would unfold to gigabytes."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("size", "reason"), [
    ((60_000, 60_000), "image too large"), ((9_500, 9_500), "image too large"), ((1, 4_000), "image too elongated")])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_unfold(size: tuple[int, int], reason: str) -> None:
    """The header's size decides; no pixel is decoded."""
    data = png_that_claims(*size)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match=reason):
            decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_no_damage_to_an_image_gets_past(format: str) -> None:
    """Cut or overwritten at any place, a file is decoded or is a BadImage; nothing else comes out."""
    data = encode(format=format)
    for place in range(0, len(data), 7):
        for damaged in (data[:place], data[:place] + b"\xff\x00\xff" + data[place + 3:]):
            try:
                assert decode_image(damaged).mode == "RGB"
            except BadImage as problem:
                assert str(problem) in {"broken image", "image too large", "image too elongated"}


def test_a_long_table_needs_little_memory(tmp_path: Path) -> None:
    """A table is streamed: memory does not grow with its length."""
    table, images = tmp_path / "captions.tsv", tmp_path / "images"
    images.mkdir()
    lines = 60_000
    table.write_text("caption\timage\n" + "a caption of usual length, say of ten words\tgone.jpg\n" * lines)
    source = open_captions(table, "caption_tsv", images)
    tracemalloc.start()
    assert sum(1 for _ in source) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.problems.counts == {"missing image": lines}
    assert len(source.problems.names["missing image"]) == source.problems.MOST_NAMES
    assert peak < 2_500_000  # the file has 3 MB; Python's table of interned names alone may grow by 2 MB meanwhile


@pytest.mark.parametrize("header", ["", "caption\turl\n"])
def test_numbers_are_believed_with_evidence_only(tmp_path: Path, header: str) -> None:
    """28 pictures named by a count from 1: refused without evidence, exact with img2dataset's parquet, with or without a header."""
    pictures, table = tmp_path / "pictures", tmp_path / "cc3m.tsv"
    urls = [f"http://a.example/{number * 5 % 28}" for number in range(28)]
    table.write_text(header + "".join(f"caption {number}\t{url}\n" for number, url in enumerate(urls)))
    (pictures / "00000").mkdir(parents=True)
    for number in range(28):
        (pictures / "00000" / f"{number + 1:09d}.jpg").write_bytes(encode((number * 9, 0, 0), "PNG"))
    with pytest.raises(ValueError, match="images named by a number, and no parquet or json"):
        open_captions(table, "google_tsv", pictures)
    keys = {"url": urls, "key": [f"{number + 1:09d}" for number in range(28)]}
    parquet_files.write_table(pyarrow.table(keys), pictures / "00000.parquet")
    found = [*open_captions(table, "google_tsv", pictures)]
    assert [(each.caption, decode_image(each.data).getpixel((0, 0))[0]) for each in found] == [
        (f"caption {number}", number * 9) for number in range(28)]


def test_a_pattern_names_one_split_of_a_folder(tmp_path: Path) -> None:
    """Both splits in one folder: refused as a folder, each read alone by a pattern, none twice."""
    for split, counts in (("train", (3, 4)), ("validation", (2,))):
        for number, count in enumerate(counts):
            write_shard(tmp_path / f"cc3m-{split}-{number:04d}.tar", count)
    with pytest.raises(ValueError, match="several sets"):
        open_captions(tmp_path, "shards")
    names = [{each.id.split("/")[0] for each in open_captions(tmp_path / pattern, "shards")}
             for pattern in ("cc3m-train-{0000..0001}.tar", "cc3m-validation-*.tar")]
    assert names == [{"cc3m-train-0000.tar", "cc3m-train-0001.tar"}, {"cc3m-validation-0000.tar"}]
    with pytest.raises(FileNotFoundError, match="1 of the 3 files that it names are missing"):
        open_captions(tmp_path / "cc3m-train-{0000..0002}.tar", "shards")


def test_shards_of_one_name_in_several_folders_keep_apart(tmp_path: Path) -> None:
    """Two folders with a 00000.tar each: every example has an id of its own."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "00000.tar", 2)
    found = [each.id for each in open_captions(tmp_path / "*" / "*.tar", "shards")]
    assert found == [f"{folder}/00000.tar/00000000{number}" for folder in "ab" for number in range(2)]


def test_a_compressed_shard_is_named(tmp_path: Path) -> None:
    """gzip named .tar is neither read nor called truncated."""
    write_shard(tmp_path / "whole.tar", 2)
    (tmp_path / "00000.tar").write_bytes(gzip.compress((tmp_path / "whole.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"00000.tar: is gzip; unpack it with gunzip"):
        open_captions(tmp_path / "00000.tar", "shards")


@pytest.mark.parametrize(("bad", "loud"), [(25, True), (24, False)])
def test_more_than_a_tenth_unusable_is_said_after_the_first_look(tmp_path: Path, bad: int, loud: bool) -> None:
    """25 of 240 are more than a tenth and are said once; 24 are not. What is bad from the start is said after 200."""
    for number in range(240):
        (tmp_path / f"{number:03d}.jpg").write_bytes(encode())
        (tmp_path / f"{number:03d}.txt").write_text("" if number >= 240 - bad else "a picture")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert sum(1 for _ in open_captions(tmp_path, "pairs")) == 240 - bad
    assert ["24 of the first 239 examples cannot be used (empty caption 24)" in str(each.message) for each in said] == [True] * loud
    for number in range(100):
        (tmp_path / f"{number:03d}.txt").unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        next(each for each in open_captions(tmp_path, "pairs") if int(each.id[:3]) == 201)
    assert ["100 of the first 200 examples" in str(each.message) for each in said] == [True]
