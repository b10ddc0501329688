"""Opening a file as a video: what it is instead is said in words, and nothing else is opened."""

import errno
from pathlib import Path

import av
import pytest

from sqt_fast.errors import VideoError
from sqt_fast.video.container import open_video
from tests.videos import look

PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile {name}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{name}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
}


def refused(path: Path) -> VideoError:
    with pytest.raises(VideoError) as caught, open_video(str(path)):
        pass
    return caught.value


@pytest.mark.usefixtures("quiet_ffmpeg")
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed(archive: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before what it names is opened."""
    name = next(p for p in sorted(archive.rglob("*.mp4")) if p.parent.name != "broken")
    path = tmp_path / "list.mp4"
    path.write_text(PLAYLISTS[kind].format(name=name))
    opened = []
    real = av.open

    def watched(*args: object, **options: object) -> object:
        container = real(*args, **options)  # type: ignore[call-overload]
        opened.append(container.format.name)
        return container

    monkeypatch.setattr(av, "open", watched)
    assert refused(path).status == "not_a_video"
    assert opened == []


def test_a_header_that_makes_no_sense_is_no_failure_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some demuxers call it an input/output error."""
    path = tmp_path / "a.webm"
    path.write_bytes(b"anything")

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(av, "open", fail)
    assert str(refused(path)) == "not a video: its header makes no sense"
    path.unlink()
    error = refused(path)
    assert (error.status, str(error)) == ("unreadable", "cannot be read: input/output error")


def test_a_video_is_opened_at_its_own_stream(archive: Path) -> None:
    path = next(p for p in sorted(archive.rglob("*.mkv")) if p.parent.name != "broken")
    with open_video(str(path)) as (container, stream):
        assert container.format.name == "matroska,webm"
        assert stream.type == "video"
    assert look(path).num_frames > 0
