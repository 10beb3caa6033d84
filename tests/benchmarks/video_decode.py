"""Candidates of long clips against decoding every frame, two decoders, and memory.

    python tests/benchmarks/video_decode.py [--clips 1000] [--assets ../shared/assets]

CPU seconds of one thread, the best of three. Memory is the decoder's process: over many clips of
four kinds (good ones, a truncated one, no video), and the peak of a 20 s clip of 1920 x 1080 that
is made of real footage.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from infra.pixels import DecodeError
from infra.video import VideoFile, read_frames
from infra.video_packets import choose, stretches
from infra.video_process import VideoProcess
from infra.video_stream import geometry, opened, to_rgb
from operators.clip_probe import ClipProbe, open_clip

LONG = (
    "persons_static_139s.mp4",
    "tears_of_steel_cuts.webm",
    "cars_topdown_30s.mp4",
    "bbb_0_30.webm",
)
SECONDS, EVERY_S, SHORT_SIDE, REPEATS = 30.0, 2.0, 512, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    beside = Path(__file__).parents[3] / "shared/assets"
    default = Path(os.environ.get("NEXTSCALE_ASSETS", beside))
    parser.add_argument("--assets", type=Path, default=default)
    given = parser.parse_args()
    videos = given.assets / "videos"
    compare(videos)
    memory_curve(videos, given.clips)
    memory_of_full_hd(videos)


def compare(videos: Path) -> None:
    """Seconds for the candidates of 30 s at 0.5 per second, and for every frame."""
    times_s = list(np.arange(0.0, SECONDS, EVERY_S))
    pair = (0.125, 256)
    print("CPU seconds | every frame | PyAV | faster | + partners | decord | + partners | decoded")
    for name in LONG:
        file = VideoFile(str(videos), name)
        every = best(lambda file=file: every_frame(file))
        found = []
        for decoder in ("pyav", "decord"):
            for more in ((None, None), pair):
                found.append(
                    best(
                        lambda file=file, decoder=decoder, more=more: read_frames(
                            file, times_s, SHORT_SIDE, *more, decoder=decoder
                        )
                    )
                )
        needed, total = packets_decoded(file, times_s)
        print(
            f"{name} | {every:.3f} | {found[0]:.3f} | {every / found[0]:.1f} | {found[1]:.3f} | "
            f"{found[2]:.3f} | {found[3]:.3f} | {needed} of {total}"
        )


def every_frame(file: VideoFile) -> int:
    """Decode and reduce all frames of the first 30 s."""
    count = 0
    with opened(file) as stream:
        for frame in stream.decode_all(stream.ticks(0), stream.ticks(SECONDS)):
            shape = geometry(stream, frame)
            to_rgb(frame, shape, *shape.reduced(SHORT_SIDE))
            count += 1
    return count


def packets_decoded(file: VideoFile, times_s: list[float]) -> tuple[int, int]:
    """How many of the 30 s' frames lie between a key frame and a candidate."""
    with opened(file) as stream:
        packets = stream.times_around([stream.ticks(time_s) for time_s in times_s], 0.0)
        shown = sorted(packet.pts for packet in packets)
        chosen = choose(shown, [stream.ticks(time_s) for time_s in times_s])
        plan = stretches(packets, {one.pts for one in chosen if one.pts is not None})
        total = sum(stream.seconds(pts) < SECONDS for pts in shown)
    return sum(stretch.stop - stretch.start for stretch in plan), total


def best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def memory_curve(videos: Path, count: int) -> None:
    """Resident memory of the decoder's process over many clips."""
    with tempfile.TemporaryDirectory() as folder:
        whole = (videos / "sea_1s.mp4").read_bytes()
        (Path(folder) / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
        (Path(folder) / "none.mp4").write_bytes(b"no video")
        places = [
            place(videos, "sea_1s.mp4"),
            place(videos, "driving_mjpeg.avi"),
            place(videos, "bbb_0_30.webm", end_s=1.0),
            place(Path(folder), "cut.mp4"),
            place(Path(folder), "none.mp4"),
        ]
        settings = ClipProbe(num_frames=2, short_side=256)
        curve, failed = [], 0
        start = time.perf_counter()
        with VideoProcess() as process:
            for i in range(count):
                try:
                    process.call(open_clip, settings, places[i % len(places)])
                except DecodeError:
                    failed += 1
                if (i + 1) % max(1, count // 10) == 0:
                    curve.append(resident_mb(process, "VmRSS"))
        seconds = time.perf_counter() - start
    print(f"{count} clips, {failed} of them failed rows, {1000 * seconds / count:.1f} ms each")
    print("resident MB at each tenth:", " ".join(f"{one:.0f}" for one in curve))


def memory_of_full_hd(videos: Path) -> None:
    """Peak memory for a clip of 20 s in 1920 x 1080 with a candidate every 2 s, and in all."""
    with tempfile.TemporaryDirectory() as folder:
        enlarge(videos / "bbb_0_30.webm", Path(folder) / "hd.mp4", 20.0)
        clip = place(Path(folder), "hd.mp4")
        for settings in (ClipProbe(every_s=2.0), ClipProbe(every_s=2.0, short_side=1024)):
            with VideoProcess() as process:
                before = resident_mb(process, "VmHWM")
                start = time.perf_counter()
                _, frames = process.call(open_clip, settings, clip)
                seconds = time.perf_counter() - start
                peak = resident_mb(process, "VmHWM")
            pictures = [one for frame in frames for one in (frame.rgb, frame.partner)]
            held = sum(one.nbytes for one in pictures if one is not None)
            print(
                f"20 s of 1920 x 1080 at {settings.short_side}: {len(frames)} candidates in "
                f"{seconds:.2f} s, peak {peak:.0f} MB ({before:.0f} before it), frames returned "
                f"{held / 1e6:.0f} MB"
            )


def enlarge(source: Path, target: Path, seconds: float) -> None:
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.codec_context.options = {"preset": "superfast"}
        for i, frame in enumerate(reader.decode(video=0)):
            if i >= 24 * seconds:
                break
            large = frame.reformat(1920, 1080, "yuv420p")
            large.pts, large.time_base = i, Fraction(1, 24)
            writer.mux(stream.encode(large))
        writer.mux(stream.encode(None))


def place(folder: Path, name: str, end_s: float | None = None) -> dict[str, object]:
    where = {"root": str(folder), "uri": name, "offset": 0, "length": None}
    return where | {"start_s": None, "end_s": end_s, "stream": 0}


def resident_mb(process: VideoProcess, which: str) -> float:
    status = Path(f"/proc/{process.call(os.getpid)}/status")
    for line in status.read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1000
    raise AssertionError(which)


if __name__ == "__main__":
    main()
