"""The frames of a moving picture, one by one: GIF and WebP by Pillow, videos by PyAV where that is installed."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from etude.data import decode
from etude.errors import EtudeError, UsageError

MOVING = (".gif", ".webp")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


@dataclass(frozen=True)
class Frame:
    """One frame of a file."""

    path: Path
    number: int

    def __str__(self) -> str:
        """clip#00007.gif: an answer's file is called after it."""
        return str(self.path.with_name(f"{self.path.stem}#{self.number:05d}{self.path.suffix}"))

    def image(self) -> Image.Image:
        """RGB. Reading them in order decodes each once. UsageError where it cannot be read."""
        return _opened(self.path).frame(self.number)


def frames(path: Path) -> list[Frame]:
    """The frames of a video or an animated picture; none of any other file."""
    moving = path.suffix.lower() in VIDEOS
    if not moving and path.suffix.lower() not in MOVING:
        return []
    try:
        count = _opened(path).count
    except UsageError:  # is told of when its turn comes, after which a job goes on
        count = 1
    return [Frame(path, number) for number in range(count)] if moving or count > 1 else []


class _Pillow:
    def __init__(self, path: Path):
        self.name = str(path)
        self.image = decode.animation(path)
        try:
            self.count: int = getattr(self.image, "n_frames", 1)  # Pillow reads the whole file for it
        except Exception as error:  # as of decode: damaged bytes raise all kinds of errors
            raise UsageError(f"{path}: truncated or damaged ({error})") from error

    def frame(self, number: int) -> Image.Image:
        try:
            self.image.seek(number)
            return decode.convert(self.image, 3)
        except EtudeError:
            raise
        except Exception as error:  # as of decode: damaged bytes raise all kinds of errors
            raise UsageError(f"{self.name}, frame {number}: truncated or damaged ({error})") from error


class _Video:
    def __init__(self, path: Path):
        try:
            import av  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UsageError(f"{path}: videos need PyAV", hint='pip install "etude[video]"') from None
        self.name, self.data, self.av = str(path), path.read_bytes(), av
        self.count = sum(1 for _ in self._decoded())
        self.next, self.stream = 0, iter(())
        if not self.count:
            raise UsageError(f"{path}: it holds no pictures")

    def _decoded(self) -> Any:
        try:
            with self.av.open(BytesIO(self.data)) as container:
                if not container.streams.video:
                    raise UsageError(f"{self.name}: it holds no pictures")
                stream = container.streams.video[0]
                if stream.width * stream.height > decode.max_pixels():
                    raise UsageError(f"{self.name}: {stream.width:,} x {stream.height:,} pixels are too many")
                yield from container.decode(stream)
        except (self.av.FFmpegError, ValueError) as error:
            if isinstance(error, EtudeError):
                raise
            raise UsageError(f"{self.name}: not a video that can be read ({error})") from None

    def frame(self, number: int) -> Image.Image:
        if number < self.next or not self.next:
            self.next, self.stream = 0, self._decoded()
        for found in self.stream:
            self.next += 1
            if self.next > number:
                return found.to_image()
        raise UsageError(f"{self.name}: it has no frame {number}")


def _opened(path: Path) -> _Pillow | _Video:
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    return _reader(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _reader(path: Path, changed: int, size: int) -> _Pillow | _Video:
    """Kept, so that the frames of a file can be asked for one by one; a file that changes is opened anew."""
    return _Video(path) if path.suffix.lower() in VIDEOS else _Pillow(path)
