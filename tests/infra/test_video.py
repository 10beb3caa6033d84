"""Hostile files end as DecodeErrors or as true frames; parts of files are read as files."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.pixels import DecodeError
from infra.storage import Storage
from infra.video import VideoFile, _Window, probe, read_frames, small_frames
from infra.video_process import VideoProcess
from tests.clips import number_of, write_clip

SHOWN_MS = [40 * i for i in range(75)]  # 3 s
TYPES = {"empty", "truncated", "corrupt", "unknown_format", "no_video_stream", "no_frames"}
TYPES |= {"endless", "too_many_pixels", "past_end", "timeout", "decoder_crashed", "out_of_memory"}
CLIPS = {
    "late.mp4": {},
    "early.mp4": {"faststart": True},
    "vp8.webm": {"codec": "libvpx"},
    "jpegs.avi": {"codec": "mjpeg"},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        name: write_clip(folder / name, SHOWN_MS, **more).read_bytes()  # type: ignore[arg-type]
        for name, more in CLIPS.items()
    }


def outcome(file: VideoFile) -> tuple[str, int]:
    """What becomes of a file: the error's type, or how many frames are right."""
    try:
        facts = probe(file)
        times_s = [facts.duration_s * (i + 0.5) / 6 for i in range(6)]
        frames = read_frames(file, times_s, 96, 0.125, 64)
        small_frames(file, 0.0, 3.0, 64, 36)
    except DecodeError as error:
        return error.type, 0
    right = 0
    for frame in frames:
        if frame.rgb is None:
            assert frame.error is not None
            assert frame.error["type"] in TYPES
        elif frame.timestamp_s is not None:
            right += number_of(frame.rgb) == round(frame.timestamp_s * 25)
    return "read", right


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("hostile")
    with VideoProcess() as process:

        def judged(data: bytes, name: str = "clip.mp4") -> tuple[str, int]:
            (folder / name).write_bytes(data)
            try:
                return process.call(outcome, VideoFile(str(folder), name), limit_s=20.0)
            except DecodeError as error:  # of the process: out of memory, crashed
                return error.type, 0

        yield judged


Judge = Callable[..., tuple[str, int]]


@pytest.mark.parametrize("name", CLIPS)
def test_a_file_cut_anywhere_gives_what_is_left_of_it(
    name: str, clips: dict[str, bytes], judge: Judge
) -> None:
    """Of a file whose index comes last nothing is left; of the others what was not cut off."""
    data = clips[name]
    assert judge(data, name) == ("read", 6)
    found = [judge(data[: len(data) * i // 10], name) for i in range(10)]
    assert found[0] == ("empty", 0)
    if name == "late.mp4":
        assert {type_ for type_, _ in found[1:]} == {"truncated"}
    else:
        assert {type_ for type_, _ in found[1:]} <= {"read", "truncated", "corrupt", "no_frames"}
        for type_, right in found[5:]:
            assert type_ == "read"
            assert right >= 5


@pytest.mark.parametrize("name", CLIPS)
def test_flipped_bits_are_survived(name: str, clips: dict[str, bytes], judge: Judge) -> None:
    for seed in range(12):
        drawn = random.Random(seed)
        data = bytearray(clips[name])
        for _ in range(2 + 4 * seed):
            data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        type_, _ = judge(bytes(data), name)
        assert type_ == "read" or type_ in TYPES - {"timeout"}


@pytest.mark.parametrize("name", CLIPS)
def test_damaged_headers_are_survived(name: str, clips: dict[str, bytes], judge: Judge) -> None:
    """All flips where they hurt: in the first 600 and the last 1,500 bytes."""
    size = len(clips[name])
    places = [*range(600), *range(max(600, size - 1500), size)]
    for seed in range(20):
        drawn = random.Random(seed)
        data = bytearray(clips[name])
        for _ in range(3):
            data[drawn.choice(places)] ^= 1 << drawn.randrange(8)
        type_, _ = judge(bytes(data), name)
        assert type_ == "read" or type_ in TYPES - {"timeout"}


def endless_mp4(data: bytes) -> bytes:
    """Movie and track headers, not the tables of frames, say that it lasts for 50 days."""
    patched = bytearray(data)
    for box, place in ((b"mvhd", 16 + 4), (b"tkhd", 20 + 4), (b"mdhd", 16 + 4), (b"elst", 8 + 4)):
        at = data.find(box)
        if at > 0:
            patched[at + place : at + place + 4] = (0x7FFFFFFF).to_bytes(4, "big")
    return bytes(patched)


def endless_webm(data: bytes) -> bytes:
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a double of 8 bytes
    return data[:at] + np.array(1e15, ">f8").tobytes() + data[at + 8 :]


@pytest.mark.parametrize("name", ["late.mp4", "early.mp4", "vp8.webm"])
def test_an_endless_duration_in_the_header_is_not_believed(
    name: str, clips: dict[str, bytes], judge: Judge, tmp_path: Path
) -> None:
    data = (endless_webm if name == "vp8.webm" else endless_mp4)(clips[name])
    assert data != clips[name]
    assert judge(data, name) == ("read", 6)
    (tmp_path / name).write_bytes(data)
    assert probe(VideoFile(str(tmp_path), name)).duration_s == pytest.approx(3.0, abs=0.1)


def test_what_is_no_video_is_named(judge: Judge, tmp_path: Path) -> None:
    import av

    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    picture = (tmp_path / "picture.png").read_bytes()
    assert judge(picture) == ("unknown_format", 0)
    assert judge(b"<html>404 not found</html>" * 50) == ("unknown_format", 0)
    assert judge(b"") == ("empty", 0)
    assert judge(bytes(5000))[0] in ("unknown_format", "corrupt", "no_video_stream", "no_frames")
    noise = random.Random(0).randbytes(50_000)
    assert judge(noise)[0] in TYPES
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 48_000), np.float32), format="fltp")
        silence.sample_rate = 48_000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    assert judge((tmp_path / "sound.mp4").read_bytes()) == ("no_video_stream", 0)


def test_lists_of_files_are_not_followed(
    clips: dict[str, bytes], judge: Judge, tmp_path: Path
) -> None:
    """A playlist would make the decoder open whatever it names, here or on the network."""
    (tmp_path / "secret.webm").write_bytes(clips["vp8.webm"])
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.webm\n"
    assert judge(playlist.encode()) == ("unknown_format", 0)
    assert judge(f"ffconcat version 1.0\nfile {tmp_path}/secret.webm\n".encode())[1] == 0


def test_a_missing_file_and_stream_are_named(clips: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(clips["late.mp4"])
    for file, type_ in (
        (VideoFile(str(tmp_path), "gone.mp4"), "missing"),
        (VideoFile(str(tmp_path), "gone.mp4", 5, 10), "missing"),
        (VideoFile(str(tmp_path), ""), "missing"),
        (VideoFile(str(tmp_path), "one.mp4", stream=1), "no_video_stream"),
        (VideoFile(str(tmp_path), "one.mp4", 0, 0), "empty"),
    ):
        with pytest.raises(DecodeError) as caught:
            probe(file)
        assert caught.value.type == type_


@pytest.mark.parametrize("name", CLIPS)
def test_a_part_of_a_file_is_read_as_a_file(
    name: str, clips: dict[str, bytes], tmp_path: Path
) -> None:
    """As a member of a tar: the same facts and frames as alone."""
    data = clips[name]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "shard.tar").write_bytes(bytes(512) + data + clips["late.mp4"])
    alone = VideoFile(str(tmp_path), name)
    member = VideoFile(str(tmp_path), "shard.tar", 512, len(data))
    assert member.open().read() == data
    assert probe(member) == probe(alone)
    times_s = [0.1, 1.0, 2.5]
    for one, other in zip(
        read_frames(member, times_s, 96, 0.1, 64),
        read_frames(alone, times_s, 96, 0.1, 64),
        strict=True,
    ):
        assert one.timestamp_s == other.timestamp_s
        assert (one.rgb == other.rgb).all()
        assert (one.partner == other.partner).all()


def test_clips_are_read_from_s3(s3: str, clips: dict[str, bytes]) -> None:
    storage = Storage(s3)
    storage.write("shard.tar", bytes(512) + clips["vp8.webm"])
    file = VideoFile(s3, "shard.tar", 512, len(clips["vp8.webm"]))
    assert probe(file).file_bytes == len(clips["vp8.webm"])
    (frame,) = read_frames(file, [1.0], 96)
    assert frame.rgb is not None
    assert number_of(frame.rgb) == 25


def test_a_fault_of_the_store_is_no_fault_of_the_file(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.bin").write_bytes(b"." + clips["vp8.webm"])

    def failing(self: _Window, size: int | None = -1) -> bytes:
        raise ConnectionResetError("the store hung up")

    monkeypatch.setattr(_Window, "read", failing)
    with pytest.raises(ConnectionResetError, match="hung up"):
        probe(VideoFile(str(tmp_path), "clip.bin", 1, None))


def test_too_large_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.video_stream.MAX_PIXELS", 1000)
    write_clip(tmp_path / "clip.mp4", SHOWN_MS[:5])
    with pytest.raises(DecodeError, match="320 x 192 pixels") as caught:
        probe(VideoFile(str(tmp_path), "clip.mp4"))
    assert caught.value.type == "too_many_pixels"


def test_memory_is_that_of_the_frames_returned(tmp_path: Path) -> None:
    """300 frames of 640 x 384 would be 221 MB as RGB."""
    write_clip(tmp_path / "clip.mp4", [40 * i for i in range(300)], size=(640, 384))
    file = VideoFile(str(tmp_path), "clip.mp4")
    with VideoProcess() as process:
        process.call(read_frames, file, [0.0], 96)  # loads the libraries
        before = most_resident(process)
        frames = process.call(read_frames, file, [0.2, 5.0, 11.5], 384, 0.125, 96)
        assert [number_of(one.rgb) for one in frames if one.rgb is not None] == [5, 125, 287]
        assert most_resident(process) - before < 60_000_000


def most_resident(process: VideoProcess) -> int:
    status = Path(f"/proc/{process.call(os.getpid)}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_windows_seek_as_files_do(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(1000)
    (tmp_path / "whole").write_bytes(data)
    part = VideoFile(str(tmp_path), "whole", 100, 300).open()
    for offset, whence, place in ((10, 0, 10), (5, 1, 15), (-20, 2, 280), (999, 0, 999)):
        part.seek(0 if whence != 1 else 10)
        assert part.seek(offset, whence) == place == part.tell()
        assert part.read(30) == data[100:400][place : place + 30]
    part.close()
