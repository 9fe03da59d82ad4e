"""``fastv2v live``: a page on this machine that drives a bundle by camera, video or clip. Runs without torch."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import tyro

from export.bundle import Manifest, load_manifest
from export.camera import Camera
from export.convert import cover
from export.driving import DRIVING_FILE, read_driving
from export.engines import this_machine
from export.live.pictures import Reader, ReadingConfig, Watched, builtin_clip
from export.live.session import LiveBundle, LiveConfig, SourceMaker
from export.runtime import filling_threads
from export.sources import condition_files, instance_files, read_conditions, unprojection_files
from fastv2v.commands.arguments import parse
from fastv2v.commands.stream import open_sequence
from fastv2v.data.folder import Phase
from fastv2v.data.images import read_image
from fastv2v.errors import ConfigError, MediaError, MissingExtraError
from fastv2v.video import read_video

if TYPE_CHECKING:
    from export.live.server import ServerConfig

_LOG = logging.getLogger(__name__)
_NEEDED = "fastv2v live needs the extra 'live': pip install 'fastv2v[live]'"


@dataclass(frozen=True, kw_only=True)
class LiveArgs:
    """Drive a bundle from a page in the browser: by its camera, a video, or a clip of the server's own.

    The page is at http://localhost:PORT and only this machine reaches it, unless --host says otherwise.
    """

    bundle: Annotated[Path, tyro.conf.Positional]
    """Bundle folder, NAME.v2v."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own lets others in, who then need the token that is printed;
    a browser gives its camera to https pages only, so give a certificate as well."""
    port: int = 8000
    """Port to listen on."""
    certificate: Path | None = None
    """Certificate of a https page, a PEM file; with --key."""
    key: Path | None = None
    """Its private key, a PEM file."""
    clients: int = 2
    """Pages that may stream at the same time."""
    threads: int | None = None
    """CPU threads of the engine; all by default."""
    camera: str | None = None
    """A camera of this machine to offer beside the browser's own: its number (0 is the first) or address."""
    video: Path | None = None
    """A video of this machine to offer, read as a camera is, over and over."""
    seed_frame: Path | None = None
    """Real frame of what was trained to begin with, and again at "Start over"; its middle is taken. Without it streams
    start from nothing, which generators of short trainings hardly recover from."""
    conditions: Path | None = None
    """Folder of one sequence's label maps or condition images to offer."""
    instances: Path | None = None
    """Folder of their instance maps, where the bundle uses them."""
    unprojections: Path | None = None
    """Folder of their unprojections, where the bundle is guided by its painted world. With --data they are found."""
    data: Path | None = None
    """Data set to offer a sequence of, read as fastv2v stream reads it."""
    sequence: str | None = None
    """Which sequence of --data; the first by default."""
    phase: Phase = "test"
    """Which part of --data."""
    test_tail: int = 0
    """Frames at the end of each training sequence of --data that make its phase ``test``, where it has no test part."""
    reading: Annotated[ReadingConfig, tyro.conf.arg(name="")] = field(default_factory=ReadingConfig)
    """How pictures become conditions."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--certificate and --key go together")
        if self.data is None and (self.sequence is not None or self.phase != "test" or self.test_tail):
            raise ConfigError("--sequence, --phase and --test-tail belong to --data")
        if self.conditions is None and (self.instances is not None or self.unprojections is not None):
            raise ConfigError("--instances and --unprojections belong to --conditions")


def live_bundle(args: LiveArgs) -> LiveBundle:
    """What a page can be offered, checked before anybody connects.

    Args:
        args: of the command line.

    Raises:
        FastV2VError: if a source that was asked for cannot be opened, or pictures cannot be read as asked.
    """
    manifest = load_manifest(args.bundle)
    unreadable, new_reader = "", None
    try:
        profile = read_driving(args.bundle, manifest) if DRIVING_FILE in manifest.files else None
        made = partial(Reader, manifest, args.reading, profile)
        made().check()
        new_reader = made
    except (ConfigError, MissingExtraError) as error:
        if args.reading != ReadingConfig() or args.camera is not None or args.video is not None:
            raise
        unreadable = str(error)
        _LOG.warning("pictures cannot drive this bundle: %s", error)
    sources = _sources(args, manifest, new_reader)
    return LiveBundle(
        args.bundle,
        sources,
        new_reader,
        unreadable=unreadable,
        seed_frame=None if args.seed_frame is None else cover(read_image(args.seed_frame), manifest.size),
        config=LiveConfig(threads=args.threads),
    )


def _sources(args: LiveArgs, manifest: Manifest, new_reader: Callable[[], Reader] | None) -> dict[str, SourceMaker]:
    """What the server itself has to show, by the name the page gives it."""
    sources: dict[str, SourceMaker] = {}
    if args.data is not None:
        taken = open_sequence(args, manifest)
        sources["data set"] = taken.conditions
    if args.conditions is not None:
        listed = condition_files(args.conditions)
        instances = instance_files(manifest, listed, args.instances)
        is_labels = manifest.condition.kind == "labels"
        points = unprojection_files(manifest, listed, args.unprojections)
        sources["folder"] = lambda: read_conditions(
            listed, manifest.size, labels=is_labels, instances=instances, unprojections=points
        )
    try:
        clip = builtin_clip(manifest)
        sources["built-in clip"] = lambda: iter(clip)
    except ConfigError as error:
        _LOG.info("%s", error)
    if new_reader is not None and args.video is not None:
        video, make = args.video, new_reader
        next(read_video(video))  # a file that cannot be read is told now
        sources["video of the server"] = lambda: Watched(read_video(video), make())
    if new_reader is not None and args.camera is not None:
        camera, make = args.camera, new_reader
        sources["camera of the server"] = lambda: _watch(camera, make())
    return sources


def _watch(source: str, reader: Reader) -> Watched:
    """Conditions of a camera's pictures."""
    camera = Camera(int(source) if source.isdecimal() else source)
    return Watched(iter(camera), reader, camera.close)


def main(argv: list[str]) -> int:
    """``fastv2v live NAME.v2v``."""
    args = parse(LiveArgs, "fastv2v live", argv)
    try:
        from export.live.server import LiveServer, ServerConfig, new_token
        from export.live.web import web_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("export", "fastv2v", "interpolate"):
            raise
        raise MissingExtraError(f"{_NEEDED} ({error.name} is missing)") from error
    config = ServerConfig(host=args.host, port=args.port, max_clients=args.clients)
    token = None if config.is_local else new_token()
    for file in (args.certificate, args.key, args.seed_frame):
        if file is not None and not file.is_file():
            raise ConfigError(f"{file}: there is no such file; --certificate, --key and --seed-frame name files")
    bundle = live_bundle(args)
    cv2.setNumThreads(filling_threads(args.threads or this_machine()["cores"]))
    server = LiveServer(bundle, config, token)
    print(f"{bundle.manifest.name}: {_address(config, token, is_https=args.certificate is not None)}  (Ctrl-C ends it)")
    if token is not None and args.certificate is None:
        _LOG.warning("without --certificate and --key the token and all pictures cross the network for all to read")
    try:
        web_server(server.app(), config, certificate=args.certificate, key=args.key).run()
    except ssl.SSLError as error:
        raise ConfigError(f"{args.certificate} and {args.key} are no certificate and key ({error.reason})") from error
    except SystemExit as error:
        raise MediaError(f"port {config.port} of {config.host} cannot be used; choose another with --port") from error
    return 0


def _address(config: ServerConfig, token: str | None, *, is_https: bool) -> str:
    """Where the page is; the token is behind a #, which browsers keep to themselves."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    host = "localhost" if config.is_local else os.uname().nodename if config.host in ("0.0.0.0", "::") else host
    return f"http{'s' * is_https}://{host}:{config.port}/" + ("" if token is None else f"#token={token}")
