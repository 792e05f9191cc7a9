"""The VOC downloader, against a server of its own on this machine."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import random
import re
import runpy
import shutil
import sys
import tarfile
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from sb_mm.datasets import prepare_voc
from sb_mm.datasets.prepare_voc import (
    VOC_YEARS,
    Archive,
    VOCPreparer,
    Year,
    check_split,
    download,
    extract,
)
from sb_mm.errors import UserInputError

TOOL = Path(__file__).parents[2] / 'tools' / 'prepare_voc.py'
Usage = namedtuple('Usage', 'total used free')


def tar_of(files):
    """Make a tar file of `name: bytes`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tiny_devkit(year, split, count, first):
    """Make an archive of a few images that no test decodes."""
    root = f'VOCdevkit/VOC{year}'
    names = [f'{first + index:06}' for index in range(count)]
    noise = random.Random(first)
    files = {
        f'{root}/ImageSets/Main/{split}.txt': '\n'.join(names).encode(),
        **{f'{root}/Annotations/{n}.xml': b'<annotation/>' for n in names},
        **{f'{root}/JPEGImages/{n}.jpg': noise.randbytes(400) for n in names},
    }
    return tar_of(files)


DATA = {
    'VOCtrainval_06-Nov-2007.tar': tiny_devkit(2007, 'trainval', 5, 1),
    'VOCtest_06-Nov-2007.tar': tiny_devkit(2007, 'test', 4, 101),
    'VOCtrainval_11-May-2012.tar': tiny_devkit(2012, 'trainval', 6, 201),
}
ONE = 'VOCtrainval_06-Nov-2007.tar'


def tiny_archive(name):
    md5 = hashlib.md5(DATA[name]).hexdigest()
    return Archive(name, md5, len(DATA[name]))


TINY_YEARS = {
    2007: Year(
        archives=tuple(tiny_archive(name) for name in list(DATA)[:2]),
        counts={'trainval': 5, 'test': 4},
    ),
    2012: Year(
        archives=(tiny_archive('VOCtrainval_11-May-2012.tar'),),
        counts={'trainval': 6},
    ),
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve DATA; the first folder of the path says how.

    range: as it should be. plain: without Range. cut: at most 3,000 bytes an
    answer. wrong: other bytes. page: HTML for every path. busy: HTTP 503.
    Anything else: HTTP 404.
    """

    def do_GET(self):
        mode, name = self.path.strip('/').split('/', 1)
        asked = self.headers.get('Range')
        self.server.requests.append((mode, name, asked))
        data = DATA.get(name.rsplit('/', 1)[-1])
        if mode == 'busy':
            self.send_error(503)
        elif mode == 'page':
            self.answer(b'<html>moved</html>')
        elif mode == 'wrong':
            self.answer(bytes(len(data)))
        elif mode == 'plain':
            self.answer(data)
        elif mode == 'cut':
            self.answer(data, asked, limit=3000)
        elif mode == 'range':
            self.answer(data, asked)
        else:
            self.send_error(404)

    def answer(self, data, asked=None, limit=None):
        start = int(re.match(r'bytes=(\d+)-', asked)[1]) if asked else 0
        if asked and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            end = f'{len(data) - 1}/{len(data)}'
            self.send_header('Content-Range', f'bytes {start}-{end}')
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][:limit])

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def running_server():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(running_server, monkeypatch):
    """The server, with an empty log; nothing waits between attempts."""
    running_server.requests = []
    monkeypatch.setattr(prepare_voc, '_pause', lambda attempt: None)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    return running_server


@pytest.fixture
def address(server):
    return f'http://127.0.0.1:{server.server_port}'


@pytest.fixture
def tars(tmp_path):
    """A folder with the three archives."""
    folder = tmp_path / 'tars'
    folder.mkdir()
    for name, data in DATA.items():
        (folder / name).write_bytes(data)
    return folder


def preparer(out, said=None, **options):
    options.setdefault('years', TINY_YEARS)
    said = [] if said is None else said
    return VOCPreparer(out=out, say=said.append, **options)


def fetch(address, folder, *modes, said=None):
    """Download the first archive in these modes."""
    download(
        [f'{address}/{mode}/{ONE}' for mode in modes],
        folder / ONE,
        tiny_archive(ONE).md5,
        ([] if said is None else said).append,
    )


def tree(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob('*')
        if path.is_file()
    )


# Download


def test_download_gives_the_bytes(tmp_path, address):
    fetch(address, tmp_path, 'range')
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert os.listdir(tmp_path) == [ONE]


def test_download_goes_on_where_an_earlier_call_stopped(
    tmp_path, address, server
):
    (tmp_path / f'{ONE}.part').write_bytes(DATA[ONE][:5000])
    fetch(address, tmp_path, 'range')
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert server.requests == [('range', ONE, 'bytes=5000-')]


def test_server_without_range_starts_the_file_again(tmp_path, address, server):
    (tmp_path / f'{ONE}.part').write_bytes(DATA[ONE][:5000])
    fetch(address, tmp_path, 'plain')
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert server.requests == [('plain', ONE, 'bytes=5000-')]


def test_cut_connections_are_continued(tmp_path, address, server):
    assert 9000 < len(DATA[ONE]) < 40_960
    with pytest.raises(UserInputError):  # four attempts bring 12,000 bytes
        fetch(address, tmp_path, 'cut')
    assert [asked for _, _, asked in server.requests] == [
        None,
        'bytes=3000-',
        'bytes=6000-',
        'bytes=9000-',
    ]
    assert (tmp_path / f'{ONE}.part').read_bytes() == DATA[ONE][:12_000]
    fetch(address, tmp_path, 'cut', 'range')
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]


def test_wrong_bytes_are_deleted_and_the_next_mirror_is_asked(
    tmp_path, address, server
):
    said = []
    fetch(address, tmp_path, 'wrong', 'range', said=said)
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert server.requests == [('wrong', ONE, None), ('range', ONE, None)]
    assert said == [f'{address}/wrong/{ONE}: wrong checksum, deleted.']


def test_a_mirror_is_not_blamed_for_the_bytes_of_another(
    tmp_path, address, server
):
    (tmp_path / f'{ONE}.part').write_bytes(bytes(5000))
    fetch(address, tmp_path, 'range')
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert [asked for _, _, asked in server.requests] == ['bytes=5000-', None]


def test_a_part_that_is_complete_is_taken(tmp_path, address, server):
    (tmp_path / f'{ONE}.part').write_bytes(DATA[ONE])
    fetch(address, tmp_path, 'range')
    assert os.listdir(tmp_path) == [ONE]
    assert len(server.requests) == 1


def test_missing_file_is_asked_for_once_and_a_busy_server_four_times(
    tmp_path, address, server
):
    said = []
    fetch(address, tmp_path, 'none', 'busy', 'range', said=said)
    assert [mode for mode, _, _ in server.requests] == [
        'none',
        *['busy'] * 4,
        'range',
    ]
    assert 'HTTP 404 Not Found' in said[0]
    assert 'HTTP 503 Service Unavailable' in said[1]


def test_unreachable_mirror_is_passed_over(tmp_path, address):
    said = []
    # Port 9 (discard) is served by nobody.
    urls = [f'http://127.0.0.1:9/{ONE}', f'{address}/range/{ONE}']
    download(urls, tmp_path / ONE, tiny_archive(ONE).md5, said.append)
    assert (tmp_path / ONE).read_bytes() == DATA[ONE]
    assert 'refused' in said[0]


def test_no_mirror_left_says_what_to_do(tmp_path, address):
    with pytest.raises(UserInputError, match=f'No mirror gave {ONE}.*--from'):
        fetch(address, tmp_path, 'none', 'wrong', 'page')
    assert not list(tmp_path.iterdir())


def test_full_disk_is_not_taken_for_a_bad_mirror(
    tmp_path, address, server, monkeypatch
):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(prepare_voc, '_receive', full)
    mirrors = [f'{address}/range', f'{address}/plain']
    with pytest.raises(UserInputError, match='No space left.*free space'):
        preparer(tmp_path / 'kit', mirrors=mirrors).run()
    assert len(server.requests) == 1


# Years


def test_both_years_are_downloaded_unpacked_and_tidied(tmp_path, address):
    said = []
    out = tmp_path / 'kit'
    preparer(out, said, mirrors=[f'{address}/none', f'{address}/range']).run()
    assert sorted(os.listdir(out)) == ['VOC2007', 'VOC2012']
    assert len(list((out / 'VOC2007/JPEGImages').iterdir())) == 9
    names = (out / 'VOC2007/ImageSets/Main/test.txt').read_text().split()
    assert names == ['000101', '000102', '000103', '000104']
    assert f'{out}/VOC2007 is ready: 5 trainval images, 4 test ' in said[-4]
    assert said[-1] == f'{out}/VOC2012 is ready: 6 trainval images.'


def test_second_call_asks_no_server(tmp_path, address, server):
    out, said = tmp_path / 'kit', []
    preparer(out, mirrors=[f'{address}/range']).run()
    server.requests.clear()
    preparer(out, said, mirrors=[f'{address}/range']).run()
    assert server.requests == []
    assert said == [
        f'{out}/VOC2007 is there already: 5 trainval images, 4 test images.',
        f'{out}/VOC2012 is there already: 6 trainval images.',
    ]


def test_year_in_a_mirror_is_filled_in(tmp_path, address, server):
    mirror = f'{address}/range/voc{{year}}/'
    preparer(tmp_path / 'kit', mirrors=[mirror]).run()
    assert [name for _, name, _ in server.requests] == [
        'voc2007/VOCtrainval_06-Nov-2007.tar',
        'voc2007/VOCtest_06-Nov-2007.tar',
        'voc2012/VOCtrainval_11-May-2012.tar',
    ]


def test_archives_are_kept_on_request(tmp_path, address, server):
    options = {'mirrors': [f'{address}/range'], 'keep_archives': True}
    preparer(tmp_path / 'a', **options).run()
    assert sorted(os.listdir(tmp_path / 'a/archives')) == sorted(DATA)
    shutil.rmtree(tmp_path / 'a' / 'VOC2007')
    server.requests.clear()
    preparer(tmp_path / 'a', **options).run()
    assert server.requests == []


def test_archives_in_a_folder_of_the_user_stay(tmp_path, address, tars):
    options = {'mirrors': [f'{address}/none'], 'download_dir': tars}
    preparer(tmp_path / 'kit', **options).run()
    assert sorted(os.listdir(tars)) == sorted(DATA)
    assert sorted(os.listdir(tmp_path / 'kit')) == ['VOC2007', 'VOC2012']


def test_archives_of_the_user_are_unpacked(tmp_path, tars):
    preparer(tmp_path / 'kit', from_dir=tars, mirrors=[]).run()
    assert len(list((tmp_path / 'kit/VOC2012/Annotations').iterdir())) == 6
    assert sorted(os.listdir(tars)) == sorted(DATA)


@pytest.mark.parametrize('given', ['.', 'VOCdevkit'])
def test_unpacked_devkit_is_linked(tmp_path, given):
    mine = tmp_path / 'mine'
    for data in DATA.values():
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(mine, filter='data')
    said = []
    preparer(tmp_path / 'kit', said, from_dir=mine / given).run()
    link = tmp_path / 'kit' / 'VOC2007'
    assert link.is_symlink()
    assert link.resolve() == mine / 'VOCdevkit' / 'VOC2007'
    assert 'VOC2007 links to' in said[0]
    preparer(tmp_path / 'kit', said, from_dir=mine / given).run()
    assert 'VOC2007 is there already' in said[2]


def test_damaged_archive_of_the_user_is_named_and_kept(tmp_path, tars):
    (tars / ONE).write_bytes(DATA[ONE][:-1])
    with pytest.raises(UserInputError, match=f'{ONE} is damaged'):
        preparer(tmp_path / 'kit', from_dir=tars).run()
    assert (tars / ONE).is_file()
    assert tree(tmp_path / 'kit') == []


def test_missing_archive_is_named(tmp_path, tars):
    (tars / 'VOCtest_06-Nov-2007.tar').unlink()
    with pytest.raises(UserInputError, match='neither VOCtest_06-Nov-2007'):
        preparer(tmp_path / 'kit', from_dir=tars).run()
    with pytest.raises(UserInputError, match='is not a folder'):
        preparer(tmp_path / 'kit', from_dir=tmp_path / 'nowhere')


def test_other_counts_are_an_error_unless_a_subset_is_wanted(tmp_path, tars):
    wrong = Year(TINY_YEARS[2007].archives, {'trainval': 7, 'test': 4})
    options = {'from_dir': tars, 'years': {2007: wrong}}
    with pytest.raises(UserInputError, match='5 trainval images instead of'):
        preparer(tmp_path / 'kit', **options).run()
    assert os.listdir(tmp_path / 'kit') == []
    preparer(tmp_path / 'kit', official=False, **options).run()
    assert os.listdir(tmp_path / 'kit') == ['VOC2007']


def test_incomplete_year_is_left_alone_and_its_gaps_are_named(tmp_path, tars):
    preparer(tmp_path / 'kit', from_dir=tars).run()
    for name in ('000001', '000002', '000004', '000005'):
        (tmp_path / f'kit/VOC2007/JPEGImages/{name}.jpg').unlink()
    (tmp_path / 'kit/VOC2007/Annotations/000003.xml').unlink()
    before = tree(tmp_path / 'kit')
    first = ', '.join(f'JPEGImages/00000{n}.jpg' for n in (1, 2, 4))
    with pytest.raises(
        UserInputError, match=f'5 files .*: {first} .*move .*VOC2007 away'
    ):
        preparer(tmp_path / 'kit', from_dir=tars).run()
    assert tree(tmp_path / 'kit') == before


def test_missing_list_is_named(tmp_path):
    with pytest.raises(UserInputError, match='trainval.txt is missing'):
        check_split(tmp_path, 'trainval')


@pytest.mark.parametrize('step', ['extract', '_verify'])
def test_interrupted_unpacking_leaves_nothing(
    tmp_path, tars, monkeypatch, step
):
    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == 2 or step == '_verify':
            raise KeyboardInterrupt
        extract(*args)

    with monkeypatch.context() as patch:
        room = prepare_voc if step == 'extract' else VOCPreparer
        patch.setattr(room, step, stop)
        with pytest.raises(KeyboardInterrupt):
            preparer(tmp_path / 'kit', from_dir=tars).run()
    assert os.listdir(tmp_path / 'kit') == []
    preparer(tmp_path / 'kit', from_dir=tars).run()
    assert sorted(os.listdir(tmp_path / 'kit')) == ['VOC2007', 'VOC2012']


def test_what_a_killed_run_left_is_removed(tmp_path, tars):
    left = tmp_path / 'kit/.VOC2007.unpacking/VOCdevkit/VOC2007/JPEGImages'
    left.mkdir(parents=True)
    (left / 'stale.jpg').write_text('')
    preparer(tmp_path / 'kit', from_dir=tars).run()
    assert sorted(os.listdir(tmp_path / 'kit')) == ['VOC2007', 'VOC2012']
    assert not (tmp_path / 'kit/VOC2007/JPEGImages/stale.jpg').exists()


@pytest.mark.parametrize('absolute', [False, True])
def test_archive_cannot_write_outside_its_folder(tmp_path, absolute):
    outside = tmp_path / 'escaped'
    name = str(outside) if absolute else '../escaped'
    (tmp_path / 'in').mkdir()
    # TarInfo keeps a leading slash, as a hostile archive would.
    (tmp_path / 'bad.tar').write_bytes(tar_of({name: b'x'}))
    with contextlib.suppress(UserInputError):
        extract(tmp_path / 'bad.tar', tmp_path / 'in')
    assert not outside.exists()


@pytest.mark.parametrize('data', [b'<html>', DATA[ONE][:5000]])
def test_what_is_no_tar_file_is_named(tmp_path, data):
    (tmp_path / 'bad.tar').write_bytes(data)
    with pytest.raises(UserInputError, match=r'bad\.tar cannot be unpacked'):
        extract(tmp_path / 'bad.tar', tmp_path / 'in')


def test_disk_space_is_checked_before_anything_is_asked_for(
    tmp_path, address, server, monkeypatch
):
    sizes = [len(data) for data in DATA.values()]
    need = 2 * sum(sizes)  # archives and what they unpack to
    asked = []

    def usage(folder):
        asked.append(Path(folder))
        return Usage(0, 0, need - 1)

    monkeypatch.setattr(shutil, 'disk_usage', usage)
    kit = preparer(tmp_path / 'new/kit', mirrors=[f'{address}/range'])
    with pytest.raises(UserInputError, match='GB free'):
        kit.run()
    assert asked == [tmp_path]
    assert server.requests == []
    assert not list(tmp_path.iterdir())
    # What was downloaded before need not be downloaded again.
    kit.archive_dir.mkdir(parents=True)
    (kit.archive_dir / f'{ONE}.part').write_bytes(DATA[ONE][:1])
    kit.run()
    assert sorted(os.listdir(kit.out)) == ['VOC2007', 'VOC2012']


def test_folder_that_cannot_be_written_is_named(tmp_path, tars):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserInputError, match='file.*cannot be read or writ'):
        preparer(tmp_path / 'file' / 'kit', from_dir=tars).run()


def test_mirror_must_be_on_the_web(tmp_path):
    with pytest.raises(UserInputError, match="'ftp://x' must begin with http"):
        preparer(tmp_path / 'kit', mirrors=['ftp://x'])


def test_official_years_are_those_of_the_paper():
    # VOC07+12: 5,011 + 11,540 = 16,551 training images.
    counts = [VOC_YEARS[year].counts['trainval'] for year in (2007, 2012)]
    assert sum(counts) == 16_551
    assert VOC_YEARS[2007].counts['test'] == 4_952


def test_official_checksums_are_those_of_torchvision():
    voc = pytest.importorskip('torchvision.datasets.voc')
    known = voc.DATASET_YEAR_DICT
    expected = [known[key] for key in ('2007', '2007-test', '2012')]
    archives = [*VOC_YEARS[2007].archives, *VOC_YEARS[2012].archives]
    assert [(a.filename, a.md5) for a in archives] == [
        (entry['filename'], entry['md5']) for entry in expected
    ]


# The tool


def call_tool(monkeypatch, *arguments):
    """Run the tool in this process and give its exit code."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    return caught.value.code


def test_tool_takes_a_subset(tmp_path, tars, monkeypatch, capsys):
    options = ['--out', tmp_path / 'kit', '--from-dir', tars]
    options += ['--expect-counts', 'none', '--years', 2012]
    assert call_tool(monkeypatch, *options) == 0
    assert 'VOC2012 is ready: 6 trainval' in capsys.readouterr().out
    assert os.listdir(tmp_path / 'kit') == ['VOC2012']


def test_tool_downloads_into_the_folders_it_is_given(
    tmp_path, address, monkeypatch
):
    options = ['--out', tmp_path / 'kit', '--download-dir', tmp_path / 'd']
    options += ['--mirrors', f'{address}/none', f'{address}/range']
    options += ['--expect-counts', 'none']
    assert call_tool(monkeypatch, *options) == 0
    assert sorted(os.listdir(tmp_path / 'kit')) == ['VOC2007', 'VOC2012']
    assert sorted(os.listdir(tmp_path / 'd')) == sorted(DATA)


def test_tool_answers_bad_input_with_one_sentence(
    tmp_path, tars, monkeypatch, capsys
):
    options = ['--out', tmp_path / 'kit', '--from-dir', tars]
    code = call_tool(monkeypatch, *options)  # not the official checksums
    out, err = capsys.readouterr()
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert 'is damaged' in err


def test_tool_says_how_to_go_on_after_an_interrupt(
    tmp_path, tars, monkeypatch, capsys
):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_voc, 'extract', stop)
    options = ['--from-dir', tars, '--expect-counts', 'none']
    assert call_tool(monkeypatch, '--out', tmp_path / 'kit', *options) == 130
    assert 'call it again to go on' in capsys.readouterr().err
