"""One opened clip: PyAV behind a small, guarded face. The demuxer is named, the decoders are listed, the sizes are checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from foveal.errors import FovealError, MediaError, MissingDependency
from foveal.media.kinds import CLIPS, CODECS
from foveal.media.source import Source
from foveal.media.values import Deadline, Limits

_MAX_THREADS = 8  # each holds its own frames


class Container:
    """The file and the one video stream that is read. Whatever FFmpeg raises comes out as MediaError."""

    def __init__(self, source: Source, kind: str, limits: Limits, deadline: Deadline) -> None:
        self.name, self.kind = source.name, kind
        self._limits, self._deadline = limits, deadline
        self._stack = contextlib.ExitStack()
        try:
            import av
        except ImportError:
            raise MissingDependency("PyAV", "video", f"reading the clip {self.name}") from None
        self._av_error: type[Exception] = av.FFmpegError  # the base; most of its kinds are also OSError or ValueError
        # From 19 on PyAV decodes metadata when it is asked for, and has no such option.
        lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(source.open())
            with self.guarded():
                self._container: Any = stack.enter_context(
                    av.open(
                        file,
                        "r",
                        format=CLIPS[kind],
                        # FFmpeg already decodes while it looks for the parameters of the streams.
                        container_options={"codec_whitelist": ",".join(CODECS)},
                        timeout=max(deadline.remaining_s, 0.001),
                        **lenient,
                    )
                )
                self.stream: Any = self._video_stream()
            self._stack = stack.pop_all()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _video_stream(self) -> Any:
        # Sound files carry their cover picture as a video stream of one frame.
        streams = [s for s in self._container.streams.video if "attached_pic" not in (s.disposition.name or "")]
        if not streams:
            # Asking a stream of unknown type for its type crashes PyAV before 17.
            found = "sound only" if self._container.streams.audio else "no sound either"
            raise MediaError(f"{self.name}: found {self.kind} without a video stream ({found}); give a clip with pictures")
        stream = streams[0]
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            found = getattr(context, "name", None) or "an unknown codec"
            raise MediaError(f"{self.name}: its video is coded as {found}, which is not decoded; convert it to H.264")
        if context.width or context.height:
            self._limits.check_size(self.name, context.height, context.width, self._limits.max_frame_pixels)
        self._limits.check_frames(self.name, stream.frames or 0)
        self._limits.check_duration(self.name, (self._container.duration or 0) / 1_000_000)
        # The header may say one size and the coded pictures another. FFmpeg counts whole blocks, hence the margin.
        context.options = {"max_pixels": str(2 * self._limits.max_frame_pixels + 65536)}
        context.thread_type = "AUTO"
        context.thread_count = min(os.cpu_count() or 1, _MAX_THREADS)
        return stream

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn what PyAV raises into MediaError, in our own words: FFmpeg's may hold addresses and paths."""
        try:
            yield
        except FovealError:
            raise
        except MemoryError as e:
            raise MediaError(f"{self.name}: there is not enough memory to decode this clip; make it smaller") from e
        except (self._av_error, ValueError, TypeError, LookupError, ArithmeticError, OSError, EOFError, RuntimeError) as e:
            self._deadline.check()  # FFmpeg gives up at its own timeout, which is ours
            raise MediaError(f"{self.name}: found {self.kind}, but it is damaged or cut off ({type(e).__name__})") from e

    def packets(self) -> Iterator[Any]:
        """Yield the stream's packets from here, an empty one at the end, and None instead where the file breaks off."""
        with self.guarded():
            try:
                for packet in self._container.demux(self.stream):
                    self._deadline.check()
                    yield packet
            except self._av_error:
                self._deadline.check()
                yield None

    def decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Decode packet by packet. What is damaged is left out: later keyframes may be whole."""
        for packet in packets:
            if packet is not None and packet.is_corrupt:
                continue
            try:
                with self.guarded():
                    frames = self.stream.decode(None) if packet is None else packet.decode()
            except MediaError as e:
                if isinstance(e.__cause__, self._av_error):
                    continue
                raise
            yield from (frame for frame in frames if not frame.is_corrupt)

    def seek(self, where: int, *, is_byte: bool) -> None:
        """Go to the last keyframe at or before a stamp of the stream, or to a byte. Raises OSError or ValueError."""
        if is_byte:
            self._container.seek(where, unsupported_byte_offset=True)
        else:
            self._container.seek(where, stream=self.stream, backward=True)
