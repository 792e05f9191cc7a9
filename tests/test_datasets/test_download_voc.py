"""The VOC downloader, against a server of its own on this machine."""

import errno
import hashlib
import http.server
import io
import os
import random
import re
import tarfile
import threading

import pytest

from sb_mm.datasets import download_voc
from sb_mm.datasets.download_voc import VOC_YEARS, download, prepare_voc
from sb_mm.errors import UserInputError


def tar_of(files):
    """Make a tar file of `name: bytes`; names may be hostile."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tiny_archive(year, split, count, first):
    """Make an archive of a few images that no test decodes."""
    root = f'VOCdevkit/VOC{year}'
    names = [f'{first + index:06}' for index in range(count)]
    files = {f'{root}/ImageSets/Main/{split}.txt': '\n'.join(names).encode()}
    for name in names:
        files[f'{root}/Annotations/{name}.xml'] = b'<annotation/>'
        files[f'{root}/JPEGImages/{name}.jpg'] = random.randbytes(400)
    return tar_of(files)


DATA = {
    'VOCtrainval_06-Nov-2007.tar': tiny_archive(2007, 'trainval', 5, 1),
    'VOCtest_06-Nov-2007.tar': tiny_archive(2007, 'test', 4, 101),
    'VOCtrainval_11-May-2012.tar': tiny_archive(2012, 'trainval', 6, 201),
}
ONE = 'VOCtrainval_06-Nov-2007.tar'
MD5 = {name: hashlib.md5(data).hexdigest() for name, data in DATA.items()}
TINY_YEARS = {
    year: {name: MD5[name] for name in archives}
    for year, archives in VOC_YEARS.items()
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve DATA; the first folder of the path says how.

    range: as it should be. plain: without Range. cut: at most 3,000 bytes an
    answer. wrong: other bytes. odd: a length that is no number. A number:
    that status.
    """

    def do_GET(self):
        mode, name = self.path.strip('/').split('/', 1)
        asked = self.headers['Range']
        self.server.requests.append((mode, name, asked))
        data = DATA[name.rsplit('/', 1)[-1]]
        data = bytes(len(data)) if mode == 'wrong' else data
        ranged = mode in ('range', 'cut')
        start = int(re.match(r'bytes=(\d+)-', asked)[1]) if ranged else 0
        if mode.isdecimal() or (start and start >= len(data)):
            self.send_error(int(mode) if mode.isdecimal() else 416)
            return
        self.send_response(206 if ranged else 200)
        if ranged:
            end = f'{len(data) - 1}/{len(data)}'
            self.send_header('Content-Range', f'bytes {start}-{end}')
        length = 'many' if mode == 'odd' else len(data) - start
        self.send_header('Content-Length', length)
        self.end_headers()
        self.wfile.write(data[start:][: 3000 if mode == 'cut' else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server with an empty log; nothing waits between attempts."""
    monkeypatch.setattr(download_voc.time, 'sleep', lambda seconds: None)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.requests = []
        server.url = f'http://127.0.0.1:{server.server_port}'
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def tars(tmp_path):
    """A folder with the three archives."""
    folder = tmp_path / 'tars'
    folder.mkdir()
    for name, data in DATA.items():
        (folder / name).write_bytes(data)
    return folder


def prepare(out, from_dir=None):
    prepare_voc(out, TINY_YEARS, from_dir)


def fetch(server, folder, *modes):
    """Download the first archive in these modes."""
    urls = [f'{server.url}/{mode}/{ONE}' for mode in modes]
    download(urls, folder / ONE, MD5[ONE])


@pytest.mark.parametrize('mode', ['range', 'plain'])
@pytest.mark.parametrize('have', [0, 5000, len(DATA[ONE])])
def test_a_download_goes_on_where_an_earlier_call_stopped(
    tmp_path, server, mode, have
):
    (tmp_path / f'{ONE}.part').write_bytes(DATA[ONE][:have])
    fetch(server, tmp_path, mode)
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert os.listdir(tmp_path) == [ONE]
    assert server.requests == [(mode, ONE, f'bytes={have}-')]


def test_cut_connections_are_continued_by_later_calls(tmp_path, server):
    with pytest.raises(UserInputError):
        fetch(server, tmp_path, 'cut')
    asked = [asked for _, _, asked in server.requests]
    assert asked == [f'bytes={n}-' for n in (0, 3000, 6000, 9000)]
    fetch(server, tmp_path, 'cut', 'range')
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]


def test_mirrors_without_the_file_are_passed_over(tmp_path, server, capsys):
    # A length that is no number must not end the download either.
    modes = ['404', '503', 'wrong', 'odd']
    fetch(server, tmp_path, *modes)
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert [mode for mode, *_ in server.requests] == modes
    said = capsys.readouterr().out
    for reason in ('404: Not Found', '503: Serv', 'wrong checksum, deleted'):
        assert reason in said


@pytest.mark.usefixtures('server')
def test_no_mirror_left_says_what_to_do(tmp_path):
    nobody = f'http://127.0.0.1:9/{ONE}'  # port 9 (discard)
    with pytest.raises(UserInputError, match='missing or damaged.*--from-dir'):
        download([nobody], tmp_path / ONE, MD5[ONE])


def test_a_full_disk_is_not_taken_for_a_bad_mirror(
    tmp_path, server, monkeypatch
):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(download_voc.shutil, 'copyfileobj', full)
    with pytest.raises(OSError, match='No space left'):
        fetch(server, tmp_path, 'range', 'plain')
    assert len(server.requests) == 1


def test_both_years_are_downloaded_unpacked_and_tidied(
    tmp_path, server, monkeypatch
):
    mirrors = [f'{server.url}/404/', f'{server.url}/range/voc{{year}}/']
    monkeypatch.setattr(download_voc, 'MIRRORS', mirrors)
    out = tmp_path / 'new/kit'
    for _ in range(2):  # the second finds all there
        prepare(out)
    assert len(list((out / 'VOC2007/JPEGImages').iterdir())) == 9
    names = (out / 'VOC2007/ImageSets/Main/test.txt').read_text().split()
    assert names == ['000101', '000102', '000103', '000104']
    assert [n for mode, n, _ in server.requests if mode == 'range'] == [
        'voc2007/VOCtrainval_06-Nov-2007.tar',
        'voc2007/VOCtest_06-Nov-2007.tar',
        'voc2012/VOCtrainval_11-May-2012.tar',
    ]
    assert not any((out / 'archives').iterdir())


def test_the_users_archives_are_checked_and_kept_as_is_a_year_with_gaps(
    tmp_path, tars
):
    kit = tmp_path / 'kit'
    prepare(kit, tars)
    assert sorted(os.listdir(kit)) == ['VOC2007', 'VOC2012']
    assert len(os.listdir(tars)) == 3
    year = kit / 'VOC2007'
    for name in ('000001.jpg', '000103.xml', 'test.txt'):
        gap = next(year.rglob(name))
        gap.unlink()
        gap = gap.relative_to(year)
        with pytest.raises(UserInputError, match=f'incomplete.*{gap}.*move'):
            prepare(kit, tars)
    assert (year / 'JPEGImages/000002.jpg').exists()
    (tars / ONE).write_bytes(DATA[ONE][:5000])
    with pytest.raises(UserInputError, match=f'{ONE} is missing or damaged'):
        prepare(tmp_path / 'other', tars)
    assert not (tmp_path / 'other').exists()


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, tars, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    (tmp_path / 'kit/.VOC2007.unpacking').mkdir(parents=True)  # by kill -9
    monkeypatch.setattr(tarfile.TarFile, 'extractall', stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / 'kit', tars)
    assert os.listdir(tmp_path / 'kit') == []


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    # TarInfo keeps a leading slash, as a hostile archive would.
    for name in ('../../escaped', f'{tmp_path}/escaped'):
        data = tar_of({name: b'x'})
        (tmp_path / ONE).write_bytes(data)
        years = {2007: {ONE: hashlib.md5(data).hexdigest()}}
        with pytest.raises((tarfile.FilterError, FileNotFoundError)):
            prepare_voc(tmp_path / 'kit', years, tmp_path)
    assert not (tmp_path / 'escaped').exists()


def test_the_official_years_are_those_of_torchvision():
    known = pytest.importorskip('torchvision.datasets.voc').DATASET_YEAR_DICT
    assert VOC_YEARS[2007] | VOC_YEARS[2012] == {
        known[key]['filename']: known[key]['md5']
        for key in ('2007', '2007-test', '2012')
    }
