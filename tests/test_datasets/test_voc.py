import io
import logging
import os
import struct
import subprocess
import sys
import zlib
from itertools import product
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmdet')

from mmdet.datasets import ConcatDataset, VOCDataset  # noqa: E402
from mmdet.registry import DATASETS as MMDET_DATASETS  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

from sb_mm.datasets.images import turn_box  # noqa: E402
from sb_mm.datasets.voc import VOCDevkitDataset  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402

CLASSES = ('square', 'disc')
DISC = ('disc', (1, 1, 9, 9))
STORED = 'color_ignore_orientation'


def load(root, name='train', classes=CLASSES, **kwargs):
    return VOCDevkitDataset(
        data_root=str(root),
        ann_file=f'ImageSets/Main/{name}.txt',
        metainfo=dict(classes=classes),
        serialize_data=False,  # which would collect garbage each time
        **kwargs,
    )


def load_voc(root, year='VOC2007', cls=VOCDevkitDataset, name='train'):
    return cls(
        data_root=f'{root}/',
        ann_file=f'{year}/ImageSets/Main/{name}.txt',
        data_prefix=dict(sub_data_root=f'{year}/'),
        filter_cfg=dict(filter_empty_gt=True),
    )


def reading(color_type):
    return [
        dict(type='LoadImageFromFile', color_type=color_type),
        dict(type='LoadAnnotations', with_bbox=True),
    ]


def infos(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def instances(root, **kwargs):
    """What is read of a.xml."""
    return load(root, **kwargs).get_data_info(0)['instances']


def annotate(root, name, text):
    data = text if isinstance(text, bytes) else text.encode()
    (root / f'Annotations/{name}.xml').write_bytes(data)


def load_whole(root):
    load(root).check_images()


def error_of(root, load=load, **kwargs):
    with pytest.raises(UserInputError) as caught:
        load(root, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    assert len(message) < 1600
    return message


@pytest.fixture
def flat(tiny_devkit):
    return tiny_devkit()


@pytest.fixture
def warnings_of(monkeypatch):
    logged = []

    def record(message, logger, level):
        assert level == logging.WARNING
        logged.append(message)

    monkeypatch.setattr('sb_mm.datasets.voc.print_log', record)
    return logged


# What is read


def test_equals_mmdets_reader_on_ordinary_files(tiny_devkit):
    root = tiny_devkit(
        sub='VOC2007',
        files=('a.jpg', 'b.jpg', 'c.jpg'),
        classes=('cat', 'dog'),
    )
    ours, theirs = load_voc(root), load_voc(root, cls=VOCDataset)
    assert infos(ours) == infos(theirs)
    assert len(ours) == 2
    assert ours.metainfo['palette'] == VOCDataset.METAINFO['palette']


def test_is_found_from_the_scope_of_mmdet(flat):
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = MMDET_DATASETS.build(
            dict(
                type='sb_mm.VOCDevkitDataset',
                data_root=str(flat),
                ann_file='ImageSets/Main/train.txt',
                metainfo=dict(classes=list(CLASSES)),
                pipeline=[*reading('color'), dict(type='PackDetInputs')],
            )
        )
    assert isinstance(dataset, VOCDevkitDataset)
    assert tuple(dataset[1]['inputs'].shape) == (3, 48, 64)


def test_voc2007_and_voc2012_concatenate_without_ignore_keys(tiny_devkit):
    for year in ('VOC2007', 'VOC2012'):
        root = tiny_devkit(sub=year, classes=('cat', 'person'))
    both = ConcatDataset([load_voc(root), load_voc(root, 'VOC2012')])
    assert len(both) == 6
    assert len(both.metainfo['classes']) == 20
    assert 'dataset_type' not in both.metainfo


@pytest.mark.parametrize(
    ('box', 'size', 'bbox'),
    [
        (('10.9', 5, '20.2', 30), (64, 48), [9, 4, 19, 29]),
        ((-3, 0, 70, 90), (64, 48), [0, 0, 63, 47]),
        ((20, 1, 60, 99), (32, 24), [19, 0, 59, 47]),
        ((30, 20, 90, 60), (128, 96), [29, 19, 63, 47]),
        ((1, 1, 9, 9), None, [0, 0, 8, 8]),
        ((1, 1, 9, 9), ('', 48), [0, 0, 8, 8]),
    ],
    ids=['fractions', 'outside', 'smaller', 'larger', 'none', 'empty'],
)
def test_boxes_count_from_zero_and_are_clipped_to_the_image_itself(
    flat, make_xml, warnings_of, box, size, bbox
):
    annotate(flat, 'a', make_xml([('disc', box)], size))
    info = load(flat).get_data_info(0)
    assert info['instances'] == [dict(ignore_flag=0, bbox=bbox, bbox_label=1)]
    assert (info['width'], info['height']) == (64, 48)
    wrong = size in ((32, 24), (128, 96))
    assert ['1 annotations give another size' in m for m in warnings_of] == (
        [True] * wrong
    )


@pytest.mark.parametrize('word', ['1', '1.0', 'True', 'YES', '2', '0.5'])
def test_words_and_numbers_that_say_difficult(flat, make_xml, word):
    objects = [(*DISC, word), (*DISC, '0'), DISC, (*DISC, 'no'), (*DISC, '')]
    annotate(flat, 'a', make_xml(objects))
    flags = [i['ignore_flag'] for i in instances(flat)]
    assert flags == [1, 0, 0, 0, 0]


def test_bbox_min_size_of_the_host_still_ignores_small_boxes(flat, make_xml):
    boxes = [('disc', (10, 10, 20, 19)), ('disc', (10, 10, 20, 20))]
    annotate(flat, 'a', make_xml(boxes))
    found = instances(flat, filter_cfg=dict(bbox_min_size=10))
    assert [i['ignore_flag'] for i in found] == [1, 0]


def test_boxes_of_nested_parts_are_no_objects(flat, make_xml):
    part = '<part><name>hat</name><bndbox><xmin>1</xmin></bndbox></part>'
    text = make_xml([('square', (10, 10, 20, 20))])
    text = text.replace('<name>square</name>', f'{part}<name>square</name>')
    annotate(flat, 'a', text)
    assert [i['bbox'] for i in instances(flat)] == [[9, 9, 19, 19]]


def test_degenerate_boxes_are_skipped_with_one_warning(
    flat, make_xml, warnings_of
):
    no_width, no_height = ('disc', (5, 1, 5, 9)), ('disc', (1, 7, 9, 7))
    outside = ('disc', (70, 10, 80, 20))
    annotate(flat, 'a', make_xml([no_width, DISC, no_height]))
    annotate(flat, 'c', make_xml([DISC, outside]))
    counts = [len(info['instances']) for info in infos(load(flat))]
    assert counts[0] == counts[2] == 1
    (message,) = warnings_of
    assert message.startswith('3 degenerate boxes')
    assert [name in message for name in ('a.xml', 'b.xml', 'c.xml')] == [
        True,
        False,
        True,
    ]


def test_image_suffixes_in_any_case(tiny_devkit):
    files = ('a.JPG', 'b.Png', 'c.jpeg', 'd.d.PNG', 'e.jpg')
    dataset = load(tiny_devkit(files=files))
    paths = [info['img_path'].rsplit('/', 1)[1] for info in infos(dataset)]
    assert paths == list(files[:-1])
    dataset.check_images()


@pytest.mark.parametrize(
    ('named', 'used', 'warned'),
    [
        ('a.png', 'a.png', False),
        ('a.jpg', 'a.jpg', False),
        (r'C:\images\a.png', 'a.png', False),
        ('A.PNG', 'a.png', False),
        ('a.bmp', 'a.bmp', False),
        ('b.png', 'a.bmp', True),
    ],
)
def test_of_several_images_filename_names_the_one(
    tiny_devkit, make_xml, warnings_of, named, used, warned
):
    files = ('a.bmp', 'a.jpg', 'a.png')
    root = tiny_devkit(files=files, lists={'train': 'a\n'})
    text = make_xml([DISC]).replace('<size>', f'<filename>{named}</filename>'
                                    '<size>')  # fmt: skip
    annotate(root, 'a', text)
    path = load(root).get_data_info(0)['img_path']
    assert path.endswith(used)
    assert [m.startswith('1 names have more') for m in warnings_of] == (
        [True] * warned
    )


def test_lists_with_blank_lines_labels_and_repeats(tiny_devkit, warnings_of):
    root = tiny_devkit(
        files=('a.jpg', 'b.jpg', 'my cat 1.jpg'),
        lists={'train': '\ufeffa  1\r\n\n b -1 \nmy cat 1\na\n'},
    )
    dataset = load(root)
    assert [i['img_id'] for i in infos(dataset)] == ['a', 'b', 'my cat 1']
    (message,) = warnings_of
    assert message.startswith('1 names are repeated')


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_names_are_the_same_in_any_form_of_unicode(
    tiny_devkit, make_xml, forms
):
    given, written = (normalize(form, 'caf\u00e9') for form in forms)
    lines = f'{given}/{given}\n{written}/{written}\n'
    root = tiny_devkit(files=('a.jpg',), lists={'train': lines})
    annotate(root, 'a', make_xml([(written, (1, 1, 9, 9))]))
    for folder, file in (('JPEGImages', 'a.jpg'), ('Annotations', 'a.xml')):
        (root / folder / written).mkdir()
        named = written + file[1:]
        (root / folder / file).rename(root / folder / written / named)
    dataset = load(root, classes=('cat', given))
    assert [i['img_id'] for i in infos(dataset)] == [f'{written}/{written}']
    assert dataset.get_data_info(0)['instances'][0]['bbox_label'] == 1
    assert 'each of them once' in error_of(root, classes=(given, written))


def test_parts_of_a_name_may_be_in_different_forms_of_unicode(tiny_devkit):
    """Such as a file of macOS in a folder of Linux."""
    root = tiny_devkit(
        files=('a.jpg',), lists={'train': '\u00e9/\u00e9\u00fc'}
    )
    moved = []
    for folder, file in (('JPEGImages', 'a.jpg'), ('Annotations', 'a.xml')):
        moved.append(root / folder / '\u00e9' / f'e\u0301\u00fc{file[1:]}')
        moved[-1].parent.mkdir()
        (root / folder / file).rename(moved[-1])
    info = load(root).get_data_info(0)
    assert [info['img_path'], info['xml_path']] == [*map(str, moved)]


@pytest.mark.parametrize(
    ('declared', 'written'),
    [
        ('utf8', 'utf-8'),
        ('UTF_8', 'utf-8-sig'),
        ('utf-16', 'utf-16'),
        ('utf16', 'utf-16'),
        ('utf-16-le', 'utf-16'),
        ('utf-8', 'utf-16'),
        ('utf-16', 'utf-8'),
        ('utf-32', 'utf-32'),
        ('iso-8859-1', 'latin-1'),
        ('gb2312', 'gb18030'),
        ('gbk', 'gbk'),
        ('big5', 'big5'),
        ('Shift_JIS', 'shift_jis'),
    ],
)
def test_annotations_in_any_encoding_that_they_declare(
    flat, make_xml, declared, written
):
    name = {'latin-1': 'é', 'gb18030': '龍'}.get(written, '犬')
    text = make_xml([(name, (1, 1, 9, 9))])
    head = f'<?xml version="1.0" encoding="{declared}"?>\n'
    annotate(flat, 'a', (head + text).encode(written))
    found = instances(flat, classes=(*CLASSES, name))
    assert found[0]['bbox_label'] == 2


# The pixels that boxes belong to


@pytest.mark.parametrize(
    ('tag', 'size_is', 'color_type'),
    [
        *product(range(1, 9), ['stored', 'shown'], ['color', STORED]),
        (6, 'stored', 'unchanged'),
    ],
)
def test_boxes_fit_the_pixels_that_are_loaded(
    flat, make_xml, warnings_of, tag, size_is, color_type
):
    size, box = (64, 48), (5, 9, 24, 20)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[8:20, 4:24] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = tag
    image.save(flat / 'JPEGImages/a.jpg', exif=exif, quality=95)
    if size_is == 'shown' and tag >= 5:
        x1, y1, x2, y2 = turn_box([v - 1 for v in box], size, tag)
        size, box = (48, 64), (x1 + 1, y1 + 1, x2 + 1, y2 + 1)
    annotate(flat, 'a', make_xml([('disc', box)], size))
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = load(flat, pipeline=reading(color_type))
    sample, info = dataset[0], dataset.get_data_info(0)
    x1, y1, x2, y2 = (int(v) for v in sample['gt_bboxes'].tensor[0])
    bright = sample['img'][..., 0] > 127
    assert bright[y1 : y2 + 1, x1 : x2 + 1].mean() > 0.98
    assert bright.sum() == pytest.approx(240, abs=12)
    assert sample['img_shape'] == (info['height'], info['width'])
    dataset.check_images()
    assert [m.startswith('1 images have an EXIF') for m in warnings_of] == (
        [True] * (tag != 1)
    )


# What is refused


def test_missing_voc_names_the_files_and_the_command(tmp_path):
    root = tmp_path / 'VOCdevkit'
    with pytest.raises(UserInputError) as caught:
        load_voc(root)
    message = str(caught.value)
    assert f'{root}/VOC2007/ImageSets/Main/train.txt' in message
    assert f'{root}/VOC2007/Annotations' in message
    assert f'{root}/VOC2007/JPEGImages' in message
    assert f'`python tools/prepare_voc.py --out {root}`' in message


@pytest.mark.parametrize('sub', ['', 'VOC2007/'])
def test_missing_own_data_says_what_is_expected(tmp_path, sub):
    prefix = dict(sub_data_root=sub)
    message = error_of(tmp_path / 'mine', data_prefix=prefix)
    assert 'prepare_voc' not in message
    assert 'mine must hold' in message
    assert f'{sub}Annotations/<name>.xml' in message


def test_voc_with_empty_folders_names_the_command(tiny_devkit):
    root = tiny_devkit(sub='VOC2007', classes=('cat',))
    for file in (root / 'VOC2007/JPEGImages').iterdir():
        file.unlink()
    with pytest.raises(UserInputError, match='prepare_voc'):
        load_voc(root)


def test_all_missing_files_are_counted_and_three_are_named(tiny_devkit):
    names = ('a', 'b', 'c', 'd', 'e')
    root = tiny_devkit(
        files=[f'{n}.jpg' for n in names],
        lists={'train': '\n'.join([*names, 'ghost'])},
    )
    for name in ('a', 'b'):
        (root / f'Annotations/{name}.xml').unlink()
    for name in ('b', 'd'):
        (root / f'JPEGImages/{name}.jpg').unlink()
    message = error_of(root)
    assert message.startswith('4 of the 6 names')
    assert (
        'a (no annotation), b (no annotation and image), d (no image) '
        'and 1 more:'
    ) in message


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('', 'is not XML'),
        ('no xml', 'is not XML'),
        ('<annotation><object>', 'is not XML'),
        ('<html></html>', 'holds <html>'),
        ('<?xml encoding="hex"?><annotation/>', 'save it as UTF-8'),
        ('<?xml encoding="ansi"?><annotation/>', 'save it as UTF-8'),
        ('<annotation>é</annotation>'.encode('latin-1'), 'save it as UTF-8'),
        (b' ' * 4_000_001, 'max_annotation_mb'),
    ],
    ids=['empty', 'text', 'cut', 'html', 'codec', 'name', 'none', 'large'],
)
def test_an_annotation_that_is_not_one_is_refused(flat, text, told):
    annotate(flat, 'a', text)
    message = error_of(flat)
    assert f'{flat}/Annotations/a.xml' in message
    assert told in message


@pytest.mark.parametrize('tag', ['name', 'bndbox', 'ymax'])
def test_an_incomplete_object_is_refused(flat, make_xml, tag):
    text = make_xml([DISC])
    start, end = text.index(f'<{tag}>'), text.index(f'</{tag}>')
    annotate(flat, 'a', text[:start] + text[end + len(tag) + 3 :])
    assert f'without <{tag}>' in error_of(flat)


LONG = 'x' * 2_000_000


@pytest.mark.parametrize(
    ('obj', 'words'),
    [
        *(
            (('disc', (1, 1, value, 9)), [f"xmax '{value}'"])
            for value in ('ten', '', 'nan', 'inf', '1,5')
        ),
        (('disc', (9, 1, 5, 9)), ["inverted 'disc' box", 'xmax 5']),
        (('disc', (1, 9, 9, 8.5)), ["inverted 'disc' box", 'ymax 8.5']),
        (('dsic', (1, 1, 9, 9)), ["'dsic'", 'square, disc', '`classes`']),
        ((LONG, (1, 1, 9, 9)), ['xx ... xx', 'square, disc']),
        (('disc', (1, 1, LONG, 9)), ['xx ... xx', 'finite numbers']),
        ((*DISC, 'Unspecified'), ["difficult 'Unspecified'", 'write 1']),
        ((*DISC, 'nan'), ["difficult 'nan'"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_object_that_cannot_be_used_is_refused(flat, make_xml, obj, words):
    annotate(flat, 'a', make_xml([obj]))
    message = error_of(flat)
    assert [word for word in words if word not in message] == []


def test_unknown_classes_can_be_skipped(flat):
    every = sum(len(info['instances']) for info in infos(load(flat)))
    discs = load(flat, classes=('disc',), skip_unknown_classes=True)
    left = sum(len(info['instances']) for info in infos(discs))
    assert 0 < left < every


def test_faults_of_one_kind_are_reported_together(tiny_devkit, make_xml):
    root = tiny_devkit(files=[f'{name}.jpg' for name in 'abcdefg'])
    for name in 'abcde':
        annotate(root, name, make_xml([('cat', (1, 1, 9, 9))]))
    annotate(root, 'f', 'not xml')
    message = error_of(root)
    assert message.count("has the class 'cat'") == 3
    assert 'and 2 more' in message
    assert 'f.xml' not in message


@pytest.mark.parametrize('classes', ['disc', (), ('disc', 'disc'), (1, 2)])
def test_classes_that_are_no_set_of_names_are_refused(flat, classes):
    assert 'classes' in error_of(flat, classes=classes)


def test_a_filter_that_leaves_nothing_is_refused(tiny_devkit, make_xml):
    root = tiny_devkit(lists={'train': 'a\n'})
    annotate(root, 'a', make_xml([]))
    assert len(load(root)) == 1
    message = error_of(root, filter_cfg=dict(filter_empty_gt=True))
    assert message.startswith('None of the 1 images')


def test_remote_storage_is_refused(flat):
    assert 'petrel' in error_of(flat, backend_args=dict(backend='petrel'))


# Lists and files that cannot be read


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (b' \n\n', r'is empty'),
        ('Männchen'.encode('latin-1'), 'save it as UTF-8'),
        (None, 'is a folder, pipe or device'),
    ],
)
def test_a_list_that_is_none_is_refused(flat, content, told):
    path = flat / 'ImageSets/Main/train.txt'
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    message = error_of(flat)
    assert 'train.txt' in message
    assert told in message


@pytest.mark.parametrize(
    'file',
    ['ImageSets/Main/train.txt', 'Annotations/a.xml', 'JPEGImages/a.jpg'],
)
def test_a_named_pipe_is_refused_instead_of_waited_for(flat, file):
    (flat / file).unlink()
    os.mkfifo(flat / file)
    message = error_of(flat)
    assert f'{flat / file} is a folder, pipe or device' in message


def test_what_may_not_be_read_is_named(flat, monkeypatch):
    def deny(*_):
        raise PermissionError(13, 'Permission denied')

    with monkeypatch.context() as patch:
        patch.setattr('os.listdir', deny)
        assert 'Annotations/ cannot be read (Permission' in error_of(flat)
    monkeypatch.setattr('sb_mm.datasets.images.open', deny, raising=False)
    assert 'train.txt cannot be read (Permission' in error_of(flat)


# Images


def encoded(kind, **kwargs):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **kwargs)
    return file.getvalue()


def damaged(kind):
    data = bytearray(encoded(kind))
    data[len(data) // 2] ^= 255
    return bytes(data)


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'no image',
        encoded('JPEG')[:-40],
        encoded('PNG')[:-40],
        damaged('PNG'),
        *map(encoded, ('ICO', 'TGA', 'PCX')),
    ],
    ids=['empty', 'text', 'cut', 'cut PNG', 'damaged', 'ICO', 'TGA', 'PCX'],
)
def test_what_the_training_cannot_decode_is_refused(flat, content):
    (flat / 'JPEGImages/a.jpg').write_bytes(content)
    message = error_of(flat, load_whole)
    assert message.startswith(f'{flat}/JPEGImages/a.jpg is not a readable')


def test_images_are_decoded_by_the_backend_of_the_pipeline(flat):
    (flat / 'JPEGImages/a.jpg').write_bytes(encoded('TGA'))
    pillow = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    load(flat, pipeline=[pillow]).check_images()


def test_a_whole_image_with_data_behind_its_end_passes(flat):
    path = flat / 'JPEGImages/a.jpg'
    path.write_bytes(path.read_bytes() + bytes(100))
    load_whole(flat)


@pytest.mark.parametrize(
    'kind',
    ['.png', '.tiff', '.jp2', 'colour .png', 'colour .ppm', 'colour .jp2'],
)
def test_more_than_8_bits_a_channel_are_refused(flat, kind):
    import cv2

    path = flat / 'JPEGImages/b.png'
    shape = (48, 64, 3) if 'colour' in kind else (48, 64)
    deep = np.full(shape, 4095, np.uint16)
    suffix = kind.split()[-1]
    path.write_bytes(cv2.imencode(suffix, deep)[1].tobytes())
    message = error_of(flat)
    assert f'{path} has more than 8 bits' in message
    assert 'mogrify' in message
    load(flat, pipeline=reading('unchanged')[:1])


def png_of(width, height):
    """A PNG whose head says so; the rest is that of a small one."""
    data = bytearray(encoded('PNG'))
    data[16:24] = struct.pack('>II', width, height)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    return data


@pytest.mark.parametrize(
    ('size', 'told'),
    [((60_000, 1), 'sides up to 32766'), ((12_000, 12_000), 'max_megapixels')],
)
def test_images_that_are_too_large_are_refused(flat, size, told):
    (flat / 'JPEGImages/b.png').write_bytes(png_of(*size))
    assert told in error_of(flat)


def test_the_limits_can_be_lifted(flat, make_xml):
    (flat / 'JPEGImages/b.png').write_bytes(png_of(14_000, 13_000))
    annotate(flat, 'a', make_xml([DISC]) + ' ' * 4_000_001)
    load(flat, max_megapixels=200, max_annotation_mb=5)


# Packaging


def test_the_tools_that_handle_files_start_without_torch():
    code = (
        'import sys\n'
        "sys.modules['torch'] = sys.modules['mmdet'] = None\n"
        'import sb_mm.datasets.synthetic_voc\n'
        'import sb_mm.datasets.download_voc\n'
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)
